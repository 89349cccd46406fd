"""The truth about one frame, as data: what captions tell, what pictures show, what the judge checks.

Knows the words (cast names, actions, props, places, positions), not how anything is drawn or said.
"""

from dataclasses import dataclass

ACTIONS = ("standing", "waving", "jumping", "sitting", "running", "sleeping")
PROPS = ("balloon", "ball", "book", "flower", "umbrella", "cake")
PLACES = ("meadow", "beach", "forest", "snow", "kitchen", "bedroom", "town", "hill")
POSITIONS = ("left", "middle", "right")


@dataclass(frozen=True)
class Actor:
    """One character in a frame. `name` is the lower-case key into the cast."""

    name: str
    action: str
    prop: str | None = None
    position: str = "middle"


@dataclass(frozen=True)
class Scene:
    """One frame: a place, one to three actors from left to right, and the seed of everything unsaid."""

    place: str
    actors: tuple[Actor, ...]
    seed: int
