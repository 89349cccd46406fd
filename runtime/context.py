"""Which finished frames a query is read behind, when a story has outgrown the context.

Knows how long each frame is to read and whom its caption names; not what is said, not the cache. A context
grows frame by frame until it is full. Then it is reduced once, to the frames that introduce a character and
the last few, and grows again: what is read anew serves many frames. Training reads long stories in the same
layout (train/telling.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from storyv_lite.bundle import Context

RECENT = 6  # frames before the one to draw that a reduced context keeps; no reference reaches further back
REDUCED = 0.75  # part of the limits that a reduced context takes at most, so that it has room to grow


@dataclass(frozen=True)
class Finished:
    """A finished frame: how many tokens it takes to read, and the characters its caption names."""

    tokens: int
    names: frozenset[str]


def grow(kept: Sequence[int], story: Sequence[Finished], query: int, limits: Context) -> tuple[int, ...]:
    """The frames of `story` to read a query of `query` tokens behind, in order.

    `kept` are those of the query before: all of them stay, and what was finished since joins them, while
    there is room; else the context is reduced. A function of its arguments alone: a resumed story comes to
    the same contexts.
    """
    grown = (*kept, *range(kept[-1] + 1 if kept else 0, len(story)))
    return grown if _fits(grown, story, query, limits) else reduce(story, query, limits)


def reduce(story: Sequence[Finished], query: int, limits: Context) -> tuple[int, ...]:
    """The frames that matter most, in order: the newest while it fits at all, then as many as find room.

    In turn one of the `RECENT` ones before the query, the newest first, and one that introduces a character,
    the one named last first: where there is little room, it is shared. The begin token is counted in.
    """
    room = Context(int(REDUCED * limits.tokens), int(REDUCED * limits.frames))
    recent = reversed(range(len(story))[-RECENT:])
    order = [frame for pair in zip_longest(recent, _introductions(story)) for frame in pair]
    kept: set[int] = set()
    for place, frame in enumerate(dict.fromkeys(frame for frame in order if frame is not None)):
        if not _fits((*kept, frame), story, query, limits if place == 0 else room):
            break
        kept.add(frame)
    return tuple(sorted(kept))


def _fits(frames: Sequence[int], story: Sequence[Finished], query: int, limits: Context) -> bool:
    tokens = 1 + sum(story[frame].tokens for frame in frames) + query
    return tokens <= limits.tokens and len(frames) < limits.frames


def _introductions(story: Sequence[Finished]) -> list[int]:
    """Frames that name somebody for the first time, in the order in which they are worth keeping."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for frame, finished in enumerate(story):
        for name in finished.names:
            first.setdefault(name, frame)
            last[name] = frame
    return [first[name] for name in sorted(first, key=lambda name: (last[name], first[name]), reverse=True)]
