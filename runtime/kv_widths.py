"""Keys and values in fewer bits than they are computed in, on the host.

Knows how they are rounded, not what they mean. Between reads only the narrow ones are there. A read widens
all of them into storage of the session's own, which is given back when it ends, and rounds what is new: later
reads see rounded keys and values, this one sees its own unrounded. Rounding is to the nearest, ties to even.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.components import Dimensions
from storyv_lite.runtime.backends.base import LanguageSession, Tensors

NARROW = {"fp16": np.float16, "int8": np.int8}
SCALE = ".scale"  # behind the name of an 8-bit tensor
_LARGEST = 127  # symmetric: -128 is not used


def narrow(name: str, wide: NDArray[np.float32], width: str) -> Tensors:
    """(1, heads, tokens, head_dim) by its name; 8 bits have one scale per head and token, (..., 1)."""
    if width == "fp16":
        return {name: wide.astype(np.float16)}
    scale = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(_LARGEST)
    steps = np.divide(wide, scale, out=np.zeros_like(wide), where=scale > 0)
    return {name: np.rint(steps).astype(np.int8), name + SCALE: scale.astype(np.float32)}


class Widened(Mapping[str, NDArray[np.float32]]):
    """What narrow tensors stand for, in float32; each is made when it is asked for, one at a time."""

    def __init__(self, tensors: Tensors, length: int) -> None:
        """Of their first `length` tokens."""
        self._tensors, self._length = tensors, length

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        wide: NDArray[np.float32] = self._tensors[name][:, :, : self._length].astype(np.float32)
        if name + SCALE in self._tensors:
            wide *= self._tensors[name + SCALE][:, :, : self._length]
        return wide

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._tensors if not name.endswith(SCALE))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass
class NarrowStorage:
    """Room for `capacity` tokens; a `CacheStorage` that reads through one of the session's."""

    capacity: int
    width: str
    arrays: Tensors = field(default_factory=dict)

    @classmethod
    def empty(cls, dims: Dimensions, capacity: int, width: str) -> "NarrowStorage":
        """`width` is a word of `NARROW`."""
        shape = (1, dims.num_key_value_heads, capacity)
        arrays: Tensors = {}
        for layer in range(dims.num_hidden_layers):
            for name in (f"key.{layer}", f"value.{layer}"):
                arrays[name] = np.zeros((*shape, dims.head_dim), NARROW[width])  # pages come when written
                if width == "int8":
                    arrays[name + SCALE] = np.zeros((*shape, 1), np.float32)
        return cls(capacity, width, arrays)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def to_host(self, stop: int, start: int = 0) -> Tensors:
        return {name: array[:, :, start:stop].copy() for name, array in self.arrays.items()}

    def from_host(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        for name, array in self.arrays.items():
            array[:, :, : tensors[name].shape[2]] = tensors[name]

    def read(
        self, session: LanguageSession, inputs_embeds: NDArray[np.float32], past_length: int
    ) -> NDArray[np.float32]:
        """As `LanguageSession.read`, behind the first `past_length` tokens."""
        total = past_length + inputs_embeds.shape[1]
        wide = session.new_cache(total)
        if past_length:
            wide.from_host(Widened(self.arrays, past_length))
        states = session.read(inputs_embeds, wide, past_length)
        for name, fresh in wide.to_host(total, past_length).items():
            for short, rounded in narrow(name, fresh.astype(np.float32, copy=False), self.width).items():
                self.arrays[short][:, :, past_length:total] = rounded
        return states
