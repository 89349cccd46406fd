"""The story's context inside the language model: keys and values, and what was read to make them.

Owned by the story, lent to a session: it outlives the weights that filled it. The backend allocates the
storage; this object alone knows how much of it is valid. A prompt is not append-only (a frame's query is
read, used and dropped), so there are two lengths: `committed`, what stays, and `length`, what was read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from storyv_lite.errors import BundleError
from storyv_lite.runtime.backends.base import CacheStorage, LanguageSession, Tensors

VISUAL = -1  # stands in `Piece.ids` where a visual token goes
FORMAT = "1"


@dataclass(frozen=True)
class Piece:
    """A run of tokens that is read as a whole; `frame` is the frame it tells of, -1 for the begin token."""

    frame: int
    ids: tuple[int, ...]
    visual: NDArray[np.float32] | None = field(default=None, compare=False)  # (visual tokens, hidden)

    def __len__(self) -> int:
        return len(self.ids)


class KVCache:
    """Keys and values of the committed prefix and of the scratch tail behind it."""

    def __init__(self, storage: CacheStorage) -> None:
        self.storage = storage
        self.pieces: list[Piece] = []  # committed, in order
        self.calls: list[tuple[int, int]] = []  # (start, length) of every read, since numerics depend on them
        self.length = 0

    @property
    def committed(self) -> int:
        """Tokens of the committed prefix."""
        return sum(map(len, self.pieces))

    @property
    def capacity(self) -> int:
        return self.storage.capacity

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.storage.nbytes

    def append(self, session: LanguageSession, inputs_embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Read (1, S, hidden) behind everything read so far; returns the states (1, S, hidden)."""
        count = inputs_embeds.shape[1]
        if self.length + count > self.capacity:
            raise ValueError(f"{self.length} + {count} tokens do not fit a cache of {self.capacity}")
        states = session.read(inputs_embeds, self.storage, self.length)
        self.calls.append((self.length, count))
        self.length += count
        return states

    def commit(self, pieces: Sequence[Piece]) -> None:
        """Keep the next tokens behind the prefix, which are those of `pieces`; the rest stays scratch."""
        if self.committed + sum(map(len, pieces)) > self.length:
            raise ValueError("more tokens are committed than were read")
        self.pieces.extend(pieces)

    def rewind(self) -> None:
        """Forget what is not committed."""
        self.length = self.committed

    def clear(self) -> None:
        """Forget everything but the room."""
        self.pieces.clear()
        self.length = 0

    def to_host(self) -> Tensors:
        """Copies of the committed keys and values."""
        return self.storage.to_host(self.committed)

    def save(self, path: Path) -> None:
        """Write the committed prefix and how it came about as one safetensors file."""
        visual = {f"visual.{i}": p.visual for i, p in enumerate(self.pieces) if p.visual is not None}
        story = {"pieces": [[p.frame, p.ids] for p in self.pieces], "calls": self.calls}
        save_file({**self.to_host(), **visual}, path, {"format": FORMAT, "story": json.dumps(story)})

    @classmethod
    def load(cls, path: Path, session: LanguageSession, capacity: int) -> "KVCache":
        """Read what `save` wrote into a new cache of `session`. Raises `BundleError`."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as fault:
            raise BundleError(f"`{path}` is no saved story context: {fault}") from fault
        if metadata.get("format") != FORMAT:
            raise BundleError(f"`{path}` has format `{metadata.get('format')}`, `{FORMAT}` is needed")
        story = json.loads(metadata["story"])
        cache = cls(session.new_cache(capacity))
        for i, (frame, ids) in enumerate(story["pieces"]):
            cache.pieces.append(Piece(frame, tuple(ids), tensors.pop(f"visual.{i}", None)))
        cache.calls = [(start, length) for start, length in story["calls"]]
        if cache.committed > capacity:
            raise BundleError(f"`{path}` holds {cache.committed} tokens; the cache has room for {capacity}")
        cache.storage.from_host(tensors)
        cache.rewind()
        return cache
