"""Which finished frames a query is read behind, when a story has outgrown the context.

Knows how long each frame is to read, and whom and which place its caption names; not what is said, not the
cache. A context grows frame by frame until it is full. Then it is reduced once, to the frame that named a
place last, the frames that introduce a character and the last few, and grows again: what is read anew serves
many frames. Training reads long stories in the same layout (train/telling.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from storyv_lite.manifest import Context

RECENT = 6  # frames before the one to draw that a reduced context keeps; no reference reaches further back
REDUCED = 0.75  # part of the limits that a reduced context takes at most, so that it has room to grow


@dataclass(frozen=True)
class Finished:
    """A finished frame: how many tokens it takes to read, and what its caption names."""

    tokens: int
    names: frozenset[str]  # of characters
    placed: bool = False  # whether it names a place


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

    In turn one of the `RECENT` ones before the query, the newest first, and one that says where the story is
    or introduces a character, the one named last first: where there is little room, it is shared. The begin
    token is counted in.
    """
    room = Context(int(REDUCED * limits.tokens), int(REDUCED * limits.frames))
    told = [*_named_a_place(story), *_introductions(story)]
    kept: set[int] = set()
    for place, frame in enumerate(_in_turn(_recent(story), told)):
        if not _fits((*kept, frame), story, query, limits if place == 0 else room):
            break
        kept.add(frame)
    return tuple(sorted(kept))


def most_tokens(told: Sequence[int], asked: Sequence[int], limits: Context) -> int:
    """The longest context of a story, begin token and query included, of frames and queries this long."""
    finished = sum(sorted(told)[-(limits.frames - 1) :]) if limits.frames > 1 else 0
    return min(1 + finished + max(asked), limits.tokens)


def lasting(story: Sequence[Finished]) -> frozenset[int]:
    """The frames that a later reduction may still keep; any other that is left out now is left for good."""
    return frozenset((*_recent(story), *_named_a_place(story), *_introductions(story)))


def _in_turn(*queues: Sequence[int]) -> list[int]:
    """The first of each queue, then the next of each, and so on; no frame takes two turns."""
    order: list[int] = []
    while left := [queue for queue in queues if not set(queue) <= set(order)]:
        for queue in left:
            order += [frame for frame in queue if frame not in order][:1]
    return order


def _recent(story: Sequence[Finished]) -> Sequence[int]:
    """The newest frames, the newest first."""
    return range(len(story))[-RECENT:][::-1]


def _named_a_place(story: Sequence[Finished]) -> list[int]:
    """The frame that named a place last: the story is there, however long ago it was said."""
    return [frame for frame, finished in enumerate(story) if finished.placed][-1:]


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
