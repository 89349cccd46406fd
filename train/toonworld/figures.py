"""Puts a character together: tail, legs, body, arms, head and what it holds, in a pose. Knows no scene."""

from storyv_lite.train.toonworld.bodies import draw_back, draw_body
from storyv_lite.train.toonworld.brush import WHITE, Brush
from storyv_lite.train.toonworld.cast import CastMember
from storyv_lite.train.toonworld.heads import draw_head
from storyv_lite.train.toonworld.poses import HEAD, HIP, SHOULDER, Point, Pose
from storyv_lite.train.toonworld.props import BEHIND, draw_prop

SIDES = (-1, 1)
_STOUT = frozenset({"bear", "penguin", "dinosaur", "owl"})
_BAREFOOT = frozenset({"bunny", "bear", "dinosaur", "turtle", "koala"})
_HEAD_TOP = -110.0
_MOTION = "#5f69dd"


def _legs(brush: Brush, who: CastMember, pose: Pose) -> None:
    width = 17 if who.kind in _STOUT else 14
    colour = who.accent if who.kind in ("penguin", "owl") else who.skin
    for side, knee, (x, y) in zip(SIDES, pose.knees, pose.feet, strict=True):
        hip = (side * 11, HIP + pose.drop)
        brush.curve([hip, knee, (x, y - 6)], colour, width)
    for side, (x, y) in zip(SIDES, pose.feet, strict=True):
        if pose.soles:
            brush.oval(x, y, 12, 14, who.shoe)
            if who.kind in _BAREFOOT:
                brush.oval(x, y + 1, 7, 8, who.pale)
            else:
                brush.oval(x, y + 1, 6.5, 8, WHITE, 90)
        else:
            brush.oval(x + side * 3, y - 5, 13, 8, who.shoe)


def _arm(brush: Brush, who: CastMember, side: int, hand: Point) -> None:
    width = 16 if who.kind in _STOUT else 14
    wide = 22 if who.kind in _STOUT else 16
    shoulder = (side * wide, SHOULDER + 8)
    elbow = ((shoulder[0] + hand[0]) / 2 + side * 6, (shoulder[1] + hand[1]) / 2 + 6)
    brush.curve([shoulder, elbow, hand], who.sleeve, width)
    _hand(brush, who, hand)


def _hand(brush: Brush, who: CastMember, hand: Point) -> None:
    brush.disc(hand[0], hand[1], 8.5, who.pale if who.kind == "cat" else who.skin)


def _held(brush: Brush, who: CastMember, prop: str, hand: Point, head_top: float) -> None:
    brush.push(*hand, 1 / who.scale, 1 / who.scale)  # things are as large for a small frog as for a bear
    draw_prop(brush, prop, (head_top - hand[1]) * who.scale)
    brush.pop()


def _upright(brush: Brush, who: CastMember, pose: Pose, prop: str | None) -> None:
    brush.push(0, -pose.lift, turn=pose.lean)
    hand = (pose.hand[0], pose.hand[1] + pose.drop * 0.5)
    if prop in BEHIND:
        _held(brush, who, prop, hand, _HEAD_TOP + pose.drop)
    brush.push(0, pose.drop)
    draw_back(brush, who)
    brush.pop()
    if not pose.soles:
        _legs(brush, who, pose)
    brush.push(0, pose.drop)
    _arm(brush, who, -1, pose.free_hand)
    draw_body(brush, who)
    brush.pop()
    if pose.soles:
        _legs(brush, who, pose)
    brush.push(0, pose.drop)
    _arm(brush, who, 1, (hand[0], hand[1] - pose.drop))
    brush.push(0, HEAD, turn=pose.tilt)
    draw_head(brush, who, pose)
    brush.pop()
    brush.pop()
    if prop is not None and prop not in BEHIND:
        _held(brush, who, prop, hand, _HEAD_TOP)
        _hand(brush, who, hand)
    brush.pop()


def _lying(brush: Brush, who: CastMember, pose: Pose, prop: str | None) -> None:
    hand = (34.0, -22.0)
    if prop in BEHIND:
        _held(brush, who, prop, (42, -14), -80)
    brush.push(54, -27, -0.8, 1, turn=-90)  # mirrored: a tail shows above the body, not below the ground
    draw_back(brush, who)
    brush.pop()
    brush.push(54, -27, turn=-90)
    _legs(brush, who, pose)
    draw_body(brush, who)
    brush.pop()
    brush.push(-22, -31, turn=pose.tilt)
    draw_head(brush, who, pose)
    brush.pop()
    brush.curve([(14, -30), (28, -10), (4, -9)], who.sleeve, 14)
    _hand(brush, who, (2, -9))
    if prop is not None and prop not in BEHIND:
        _held(brush, who, prop, hand, _HEAD_TOP)
        _hand(brush, who, hand)


def draw_figure(brush: Brush, who: CastMember, pose: Pose, prop: str | None) -> None:
    """Draw a character that stands, sits, moves or lies at the origin; right is where it faces."""
    if pose.lying:
        _lying(brush, who, pose, prop)
    else:
        _upright(brush, who, pose, prop)


def _trail(brush: Brush, points: list[Point]) -> None:
    for colour, width in ((WHITE, 9.5), (_MOTION, 4.5)):
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            brush.line(x0, y0, x1, y1, colour, width)


def draw_motion(brush: Brush, action: str, pose: Pose) -> None:
    """Draw what an action leaves in the air behind a figure: sleep, speed, a wave. It is in no mask."""
    if action == "sleeping":
        for x, y, size in ((8.0, -84.0, 20), (35.0, -106.0, 16)):
            _trail(brush, [(x, y), (x + size, y), (x, y + size), (x + size, y + size)])
    elif action == "running":
        for y, length in ((-86, 14), (-62, 24), (-40, 14)):
            _trail(brush, [(-58, y), (-58 - length, y)])
        for x, y, r in ((-58, -8, 11), (-75, -5, 8)):
            brush.disc(x, y, r, WHITE)
    elif action == "waving":
        x, y = pose.free_hand
        for colour, width in ((WHITE, 9.5), (_MOTION, 4.5)):
            for r in (20, 33):
                brush.arc(x, y, r, r, 178, 62, colour, width)
    elif action == "jumping":
        for x in (-18, 0, 18):
            _trail(brush, [(x, -pose.lift + 14), (x, -pose.lift + 23)])
