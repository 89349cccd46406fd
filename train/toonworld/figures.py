"""Puts a character together: tail, legs, body, arms, head and what it holds, in a pose. Knows no scene."""

from storyv_lite.train.toonworld.bodies import draw_back, draw_body
from storyv_lite.train.toonworld.brush import INK, WHITE, Brush
from storyv_lite.train.toonworld.cast import CastMember
from storyv_lite.train.toonworld.heads import draw_head
from storyv_lite.train.toonworld.poses import HEAD, HIP, SHOULDER, Point, Pose
from storyv_lite.train.toonworld.props import BEHIND, draw_prop

SIDES = (-1, 1)
_STOUT = frozenset({"bear", "penguin", "dinosaur", "owl"})
_HEAD_TOP = -120.0


def _legs(brush: Brush, who: CastMember, pose: Pose) -> None:
    width = 17 if who.kind in _STOUT else 14
    colour = who.accent if who.kind in ("penguin", "owl") else who.skin
    for side, knee, (x, y) in zip(SIDES, pose.knees, pose.feet, strict=True):
        hip = (side * 11, HIP + pose.drop)
        brush.curve([hip, knee, (x, y - 6)], colour, width)
    for side, (x, y) in zip(SIDES, pose.feet, strict=True):
        if pose.soles:
            brush.oval(x, y, 12, 14, who.shoe)
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
    hand = (26.0, -22.0)
    if prop in BEHIND:
        _held(brush, who, prop, (34, -14), -80)
    brush.push(46, -27, turn=-90)
    draw_back(brush, who)
    _legs(brush, who, pose)
    draw_body(brush, who)
    brush.pop()
    brush.push(-30, -31, turn=pose.tilt)
    draw_head(brush, who, pose)
    brush.pop()
    brush.curve([(6, -30), (20, -10), (-4, -9)], who.sleeve, 14)
    _hand(brush, who, (-6, -9))
    if prop is not None and prop not in BEHIND:
        _held(brush, who, prop, hand, _HEAD_TOP)
        _hand(brush, who, hand)


def draw_figure(brush: Brush, who: CastMember, pose: Pose, prop: str | None) -> None:
    """Draw a character that stands, sits, moves or lies at the origin; right is where it faces."""
    if pose.lying:
        _lying(brush, who, pose, prop)
    else:
        _upright(brush, who, pose, prop)


def draw_motion(brush: Brush, who: CastMember, action: str, pose: Pose) -> None:
    """Draw what an action leaves in the air behind a figure: sleep, speed, a wave. No part of the character."""
    if action == "sleeping":
        for x, y, size in ((14, -74, 20), (38, -96, 15)):
            z = [(x, y), (x + size, y), (x, y + size), (x + size, y + size)]
            for colour, width in ((WHITE, 10), ("#5560d8", 5)):
                for (x0, y0), (x1, y1) in zip(z, z[1:], strict=False):
                    brush.line(x0, y0, x1, y1, colour, width)
    elif action == "running":
        for y, length in ((-84, 22), (-58, 30), (-36, 20)):
            brush.line(-56, y, -56 - length, y, WHITE, 6)
        for x, y, r in ((-58, -8, 11), (-74, -5, 8)):
            brush.disc(x, y, r, WHITE)
    elif action == "waving":
        x, y = pose.free_hand
        for r in (16, 25):
            brush.arc(x + 4, y + 4, r, r, 165, 75, INK, 4)
    elif action == "jumping":
        for x in (-16, 0, 16):
            brush.line(x, -pose.lift + 14, x, -pose.lift + 26, WHITE, 5)
