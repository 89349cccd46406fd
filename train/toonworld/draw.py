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
_CENTRES = {"left": 60.0, "middle": 128.0, "right": 196.0}
_SCALES = {1: 1.12, 2: 1.0, 3: 0.84}
_SPACING = {2: 84.0, 3: 80.0}
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

    def rgb(self) -> Image:
        """The colours (S, S, 3) as red, green, blue: a view."""
        return self.pixels[..., :3] if self.red_first else self.pixels[..., 2::-1]


@lru_cache(maxsize=4)
def _layers(size: int) -> tuple[_Layer, _Layer]:
    return _Layer(size), _Layer(size)


def _spread(centres: list[float], spacing: float) -> list[float]:
    """Push neighbours apart, from the middle of the row, until each pair is at least `spacing` apart."""
    order = sorted(range(len(centres)), key=lambda at: centres[at])
    placed = [centres[at] for at in order]
    for left in range(len(placed) - 1):
        lack = spacing - (placed[left + 1] - placed[left])
        if lack > 0:
            placed = [x - lack / 2 if at <= left else x + lack / 2 for at, x in enumerate(placed)]
    shift = max(0.0, 42 - placed[0]) - max(0.0, placed[-1] - (UNITS - 42))
    result = [0.0] * len(centres)
    for at, x in zip(order, placed, strict=True):
        result[at] = x + shift
    return result


def _stances(scene: Scene) -> list[_Stance]:
    rng = Random(scene.seed * 2 + 1)
    count = len(scene.actors)
    scale = _SCALES[count]
    centres = [_CENTRES[actor.position] + rng.uniform(-8, 8) for actor in scene.actors]
    if count > 1:
        centres = _spread(centres, _SPACING[count])
    stances = []
    for actor, x in zip(scene.actors, centres, strict=True):
        facing = rng.choice((-1, 1))
        if abs(x - UNITS / 2) > 30 and (actor.prop or actor.action in ("running", "sleeping")):
            facing = 1 if x < UNITS / 2 else -1  # what is held stays inside the picture
        stances.append(
            _Stance(actor, pose(actor.action, actor.prop is not None, rng), x, scale, facing)
        )
    return stances


def _enter(brush: Brush, stance: _Stance) -> None:
    size = stance.scale * member(stance.actor.name).scale
    brush.push(stance.x, _GROUND, size * stance.facing, size)


def _backdrop(brush: Brush, scene: Scene, stances: list[_Stance]) -> None:
    draw_place(brush, scene.place, Random(scene.seed * 2))
    for stance in stances:
        who = member(stance.actor.name)
        width = 64 if stance.pose.lying else 30 if stance.pose.lift > 20 else 40
        brush.oval(stance.x, _GROUND, width * stance.scale * who.scale, 8, "#1b1b38", 64)
    for stance in stances:
        _enter(brush, stance)
        draw_motion(brush, member(stance.actor.name), stance.actor.action, stance.pose)
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
    product = a.astype(np.uint16) * b
    product += 1 + (product >> 8)
    product >>= 8
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
    under += layer.rgb()[window]
    under += rim[..., None]
    image[window] = np.minimum(under, 255)
    for earlier in range(index):
        masks[earlier][window] = _times(masks[earlier][window], left)
    masks[index][window] = cover


def _draw_all(stances: list[_Stance], image: Image, size: int) -> Image:
    layer = _layers(size)[1]
    masks: Image = np.zeros((len(stances), size, size), np.uint8)
    for index, stance in enumerate(stances):
        layer.pixels[...] = 0
        _enter(layer.brush, stance)
        draw_figure(layer.brush, member(stance.actor.name), stance.pose, stance.actor.prop)
        layer.brush.pop()
        _put(image, masks, index, layer, size)
    return masks


def render(scene: Scene, size: int = 256) -> Picture:
    """Draw a scene of one to three actors; later actors stand in front. Raises StoryVError for an unknown name."""
    stances = _stances(scene)
    ground = _layers(size)[0]
    _backdrop(ground.brush, scene, stances)
    image: Image = np.ascontiguousarray(ground.rgb())
    masks = _draw_all(stances, image, size)
    return Picture(image, masks, tuple(_bounds(mask, threshold=127) for mask in masks))


def portrait(name: str, size: int = 256) -> Image:
    """A character alone (size, size, 3): standing, in the middle, large, on white."""
    who = member(name)
    calm = replace(pose("standing", False, Random(0)), tilt=0.0, look=0.0)
    stance = _Stance(Actor(name, "standing"), calm, UNITS / 2, 1.3 / who.scale, 1)
    image: Image = np.full((size, size, 3), 255, np.uint8)
    _draw_all([stance], image, size)
    return image
