"""Turns a scene into a picture with exact masks and boxes, the same bytes every time. Knows no words."""

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import skia

from storyv_lite.train.toonworld.brush import Brush
from storyv_lite.train.toonworld.cast import member
from storyv_lite.train.toonworld.figures import draw_figure, draw_motion
from storyv_lite.train.toonworld.places import draw_place
from storyv_lite.train.toonworld.poses import Pose, pose
from storyv_lite.train.toonworld.scene import Actor, Scene

Image = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]

UNITS = 256.0
_GROUND = 228.0
_OFFSETS = {"left": -1, "middle": 0, "right": 1}
_STEPS = {1: 56.0, 2: 66.0, 3: 80.0}  # from the middle to a side, by the number of actors
_SCALES = {1: 1.12, 2: 1.0, 3: 0.84}
_PROP_REACH = 68.0
_PORTRAIT = 236.0
# Offsets, in units, whose union with a figure is the white rim round it.
_RIM = [(dx, dy) for dx in range(-3, 4) for dy in range(-3, 4) if 5 < dx * dx + dy * dy <= 10]


@dataclass(frozen=True)
class Picture:
    """A drawn scene of side S: `image` (S, S, 3), `masks` (actors, S, S) in the actors' order, each the alpha
    (0 to 255) with which that actor shows, `boxes` (x0, y0, x1, y1), ends excluded, round what shows."""

    image: Image
    masks: Image
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class _Stance:
    actor: Actor
    pose: Pose
    x: float
    ground: float
    scale: float
    facing: int


class _Layer:
    """A skia surface over a numpy array (S, S, 4), premultiplied, in skia's native channel order."""

    def __init__(self, size: int) -> None:
        self.pixels: Image = np.zeros((size, size, 4), np.uint8)
        # Unpremultiplied surfaces (skia's default over numpy) would need a multiplication before compositing.
        self.surface = skia.Surface(self.pixels, skia.kN32_ColorType, skia.kPremul_AlphaType)
        self.brush = Brush(self.surface.getCanvas())
        self.brush.canvas.scale(size / UNITS, size / UNITS)
        self.red_first = skia.kN32_ColorType == skia.kRGBA_8888_ColorType

    def rgb(self, window: tuple[slice, slice]) -> Image:
        """The colours (h, w, 3) of a window, red first."""
        # Channel by channel: numpy copies a reversed last axis several times more slowly.
        channels = (0, 1, 2) if self.red_first else (2, 1, 0)
        result: Image = np.empty((*self.pixels[window].shape[:2], 3), np.uint8)
        for to, channel in enumerate(channels):
            result[..., to] = self.pixels[window][..., channel]
        return result


@lru_cache(maxsize=4)
def _layers(size: int) -> tuple[_Layer, _Layer]:
    return _Layer(size), _Layer(size)


def _facing(scene: Scene, index: int) -> int:
    """1 to face right, -1 left: towards the middle, and from there to where there is room.

    Never at random: of a picture that could as well be mirrored, a denoiser draws both halves.
    """
    others = sum(_OFFSETS[actor.position] for actor in scene.actors)
    return -1 if (_OFFSETS[scene.actors[index].position] or others) > 0 else 1


def _spread(centres: list[float], reaches: list[tuple[float, float]]) -> list[float]:
    """Move a row of figures apart until each keeps its reach to both sides, as far as there is room."""
    fit = min(1.0, UNITS / sum(left + right for left, right in reaches))
    placed = list(centres)
    for _ in range(12):
        for at in range(len(placed) - 1):
            lack = fit * (reaches[at][1] + reaches[at + 1][0]) - (placed[at + 1] - placed[at])
            if lack > 0:
                placed[at] -= lack / 2
                placed[at + 1] += lack / 2
        placed = [
            min(max(x, fit * left), UNITS - fit * right)
            for x, (left, right) in zip(placed, reaches, strict=True)
        ]
    return placed


def _stances(scene: Scene) -> list[_Stance]:
    rng = Random(scene.seed * 2 + 1)
    count = len(scene.actors)
    centres: list[float] = []
    reaches: list[tuple[float, float]] = []
    stances: list[_Stance] = []
    for index, actor in enumerate(scene.actors):
        held = pose(actor.action, actor.prop is not None, rng)
        scale = _SCALES[count] * member(actor.name).scale
        facing = _facing(scene, index)
        front = max(held.reach, _PROP_REACH) if actor.prop else held.reach
        left, right = (held.reach, front) if facing == 1 else (front, held.reach)
        reaches.append((left * scale, right * scale))
        centres.append(UNITS / 2 + _STEPS[count] * _OFFSETS[actor.position] + rng.uniform(-8, 8))
        stances.append(_Stance(actor, held, 0, _GROUND, scale, facing))
    placed = _spread(centres, reaches)
    return [replace(stance, x=x) for stance, x in zip(stances, placed, strict=True)]


def _order(stances: list[_Stance]) -> list[int]:
    """Who is drawn first: those with empty hands, then so that nobody covers what a neighbour holds."""
    holders = [at for at, stance in enumerate(stances) if stance.actor.prop]
    empty = [at for at, stance in enumerate(stances) if not stance.actor.prop]
    to_left = [at for at in holders if stances[at].facing == -1]
    to_right = [at for at in reversed(holders) if stances[at].facing == 1]
    return empty + to_left + to_right


def _enter(brush: Brush, stance: _Stance) -> None:
    brush.push(stance.x, stance.ground, stance.scale * stance.facing, stance.scale)


def _backdrop(brush: Brush, scene: Scene, stances: list[_Stance]) -> None:
    draw_place(brush, scene.place, Random(scene.seed * 2))
    for stance in stances:
        width = 62 if stance.pose.lying else 30 if stance.pose.lift > 20 else 40
        brush.oval(stance.x, stance.ground, width * stance.scale, 8, "#1b1b38", 64)
    for stance in stances:
        _enter(brush, stance)
        draw_motion(brush, stance.actor.action, stance.pose)
        brush.pop()


def _rim(alpha: Image, size: int) -> Image:
    """The figure's alpha (h, w) grown by the white rim."""
    grown = alpha.copy()
    height, width = alpha.shape
    for dx, dy in sorted({(round(x * size / UNITS), round(y * size / UNITS)) for x, y in _RIM}):
        to_y, to_x = slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0))
        from_y, from_x = slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0))
        np.maximum(grown[to_y, to_x], alpha[from_y, from_x], out=grown[to_y, to_x])
    return grown


def _bounds(alpha: Image, threshold: int = 0, margin: int = 0) -> Box:
    shows = alpha > threshold
    rows, columns = np.flatnonzero(shows.any(axis=1)), np.flatnonzero(shows.any(axis=0))
    if rows.size == 0:
        return (0, 0, 0, 0)
    height, width = alpha.shape
    return (
        max(int(columns[0]) - margin, 0),
        max(int(rows[0]) - margin, 0),
        min(int(columns[-1]) + 1 + margin, width),
        min(int(rows[-1]) + 1 + margin, height),
    )


def _times(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """a * b / 255 for bytes, rounded down."""
    product: npt.NDArray[np.uint16] = np.multiply(a, b, dtype=np.uint16)
    product += (product >> 8) + np.uint16(1)
    product >>= np.uint16(8)
    return product


def _put(image: Image, masks: Image, index: int, layer: _Layer, size: int) -> None:
    """Lay the figure in `layer` and its rim over the image, and take what it hides from earlier masks."""
    x0, y0, x1, y1 = _bounds(layer.pixels[..., 3], margin=4)
    window = (slice(y0, y1), slice(x0, x1))
    alpha = layer.pixels[window][..., 3]
    rim = _times(_rim(alpha, size), 255 - alpha)
    cover = (alpha + rim).astype(np.uint8)
    left = 255 - cover
    under = _times(image[window], left[..., None])
    under += layer.rgb(window)
    under += rim[..., None]
    image[window] = np.minimum(under, 255)
    for other in masks:  # those not drawn yet are empty
        other[window] = _times(other[window], left)
    masks[index][window] = cover


def _draw_alone(stance: _Stance, size: int) -> _Layer:
    layer = _layers(size)[1]
    layer.pixels[...] = 0
    _enter(layer.brush, stance)
    draw_figure(layer.brush, member(stance.actor.name), stance.pose, stance.actor.prop)
    layer.brush.pop()
    return layer


def render(scene: Scene, size: int = 256) -> Picture:
    """Draw a scene of one to three actors, named from left to right.

    Raises StoryVError for a name that is not in the cast.
    """
    stances = _stances(scene)
    ground = _layers(size)[0]
    _backdrop(ground.brush, scene, stances)
    image = ground.rgb((slice(None), slice(None)))
    masks: Image = np.zeros((len(stances), size, size), np.uint8)
    for index in _order(stances):
        _put(image, masks, index, _draw_alone(stances[index], size), size)
    return Picture(image, masks, tuple(_bounds(mask, threshold=127) for mask in masks))


def portrait(name: str, size: int = 256) -> Image:
    """A character alone (size, size, 3): standing, in the middle, as large as fits, on white."""
    calm = replace(pose("standing", False, Random(0)), free_hand=(-37, -34), tilt=0.0, look=0.0)
    stance = _Stance(Actor(name, "standing"), calm, UNITS / 2, _GROUND, 1.0, 1)
    x0, y0, x1, y1 = (edge * UNITS / size for edge in _bounds(_draw_alone(stance, size).pixels[..., 3]))
    zoom = _PORTRAIT / max(x1 - x0, y1 - y0)
    x = UNITS / 2 + zoom * (stance.x - (x0 + x1) / 2)
    ground = UNITS / 2 + zoom * (stance.ground - (y0 + y1) / 2)
    image: Image = np.full((size, size, 3), 255, np.uint8)
    masks: Image = np.zeros((1, size, size), np.uint8)
    _put(image, masks, 0, _draw_alone(replace(stance, x=x, ground=ground, scale=zoom), size), size)
    return image
