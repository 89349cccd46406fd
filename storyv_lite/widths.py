"""Which layer gets how many bits: a choice over all layers of several components at once, by measured errors.

Pure. Each layer has options, each with bytes and an error that adds to the others'; every layer begins with
its smallest option, and step by step the change that removes the most error per byte is taken.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storyv_lite.components import Component


@dataclass(frozen=True)
class Option:
    """One way to store a layer."""

    bits: int
    bytes: int
    error: float  # what it adds to the mean squared error of pictures in [0, 1]


@dataclass(frozen=True)
class Layer:
    """One layer and its options, narrow ones first."""

    component: Component
    name: str  # module path
    options: tuple[Option, ...]


def choose(layers: Sequence[Layer], max_bytes: float = float("inf"), max_error: float = -1.0) -> list[Option]:
    """The option of each layer: as little error as `max_bytes` hold, and no byte more than `max_error` needs.

    A change that does not fit any more is passed over and a smaller one taken, so that little room is left.
    Where the smallest options are too large already, they are the answer.
    """
    hulls = [list(_hull(layer.options)) for layer in layers]
    at = [0] * len(layers)
    size = sum(hull[0].bytes for hull in hulls)
    error = sum(hull[0].error for hull in hulls)
    queue: list[tuple[float, int]] = []

    def push(index: int) -> None:
        if at[index] + 1 < len(hulls[index]):
            heapq.heappush(queue, (-_gain(*hulls[index][at[index] : at[index] + 2]), index))

    for index in range(len(layers)):
        push(index)
    while queue and error > max_error:
        _, index = heapq.heappop(queue)
        old, new = hulls[index][at[index] : at[index] + 2]
        if size + new.bytes - old.bytes > max_bytes:
            continue
        size, error = size + new.bytes - old.bytes, error + new.error - old.error
        at[index] += 1
        push(index)
    return [hull[place] for hull, place in zip(hulls, at, strict=True)]


def _hull(options: Sequence[Option]) -> Iterator[Option]:
    """The options worth their bytes: each step up removes less error per byte than the one before."""
    left = sorted(options, key=lambda option: (option.bytes, option.error))
    current = left[0]
    yield current
    while better := [o for o in left if o.bytes > current.bytes and o.error < current.error]:
        current = max(better, key=lambda option: (_gain(current, option), option.bytes))
        yield current


def _gain(old: Option, new: Option) -> float:
    """Error that a change removes per byte."""
    return (old.error - new.error) / (new.bytes - old.bytes)
