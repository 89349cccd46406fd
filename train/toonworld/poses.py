"""How a body is held in each action, as numbers. Knows no character and draws nothing.

Units: a figure of scale 1 stands with its feet at (0, 0), y downwards, shoulders at -62, head centre at -94.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

HIP = -24.0
SHOULDER = -62.0
HEAD = -94.0

Point = tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """One way to hold a body; the free hand is on the left, the one that holds things on the right."""

    free_hand: Point = (-37, -34)
    hand: Point = (37, -34)
    feet: tuple[Point, Point] = ((-14, 0), (14, 0))
    knees: tuple[Point, Point] = ((-13, -12), (13, -12))
    soles: bool = False
    lift: float = 0  # the whole figure above the ground
    drop: float = 0  # the body towards the feet
    lean: float = 0  # degrees, forwards
    tilt: float = 0  # the head, degrees
    lying: bool = False
    eyes: Literal["open", "closed"] = "open"
    mouth: Literal["smile", "open", "asleep"] = "smile"
    look: float = 0  # where the eyes turn, in units of the head
    reach: float = 42  # half the room it takes sideways


_HOLDING: Point = (41, -50)

_POSES = {
    "standing": Pose(),
    "waving": Pose(free_hand=(-55, -104), mouth="open", tilt=4, reach=50),
    "jumping": Pose(
        free_hand=(-52, -98),
        hand=(52, -98),
        feet=((-30, -8), (30, -8)),
        knees=((-34, -26), (34, -26)),
        lift=27,
        mouth="open",
        reach=54,
    ),
    "sitting": Pose(
        free_hand=(-32, -22),
        hand=(32, -22),
        feet=((-37, -13), (37, -13)),
        knees=((-20, -20), (20, -20)),
        soles=True,
        drop=15,
    ),
    "running": Pose(
        free_hand=(-42, -46),
        hand=(42, -66),
        feet=((-42, -19), (32, -5)),
        knees=((-12, -4), (36, -28)),
        lift=6,
        lean=11,
        mouth="open",
        look=4,
        reach=52,
    ),
    "sleeping": Pose(lying=True, eyes="closed", mouth="asleep", tilt=-10, reach=66),
}


def pose(action: str, holding: bool, rng: Random) -> Pose:
    """The pose of an action, a little different each time."""
    base = _POSES[action]
    if base.lying:
        return base
    sway = rng.uniform(-3, 3)
    x, y = base.free_hand
    base = replace(base, free_hand=(x + sway, y + rng.uniform(-3, 3)), tilt=base.tilt + rng.uniform(-4, 4))
    if action == "standing":
        base = replace(base, look=rng.choice((-3.0, 0.0, 3.0)))
    if action == "jumping":
        base = replace(base, lift=base.lift + rng.uniform(-5, 4))
    if holding:
        height = -56 if action == "jumping" else -44 if action == "sitting" else _HOLDING[1]
        base = replace(base, hand=(_HOLDING[0], height + rng.uniform(-2, 2)))
    return base
