"""The story's context inside the language model: keys and values, and what was read to make them.

Owned by the story, lent to a session: it outlives the weights that filled it. The backend allocates the
storage; this object alone knows how much of it is valid. A prompt is not append-only (a frame's query is
read, used and dropped), so there are two lengths: `committed`, what stays, and `length`, what was read.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from storyv_lite.errors import BundleError
from storyv_lite.runtime.backends.base import CacheStorage, LanguageSession, Tensors
from storyv_lite.runtime.disk import write_file
from storyv_lite.runtime.kv_widths import NarrowStorage

VISUAL = -1  # stands in `Piece.ids` where a visual token goes
FORMAT = "2"
_READ_AGAIN = "read the story again; its captions and pictures say the same"


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

    def __init__(self, storage: CacheStorage, width: str = "", model: str = "") -> None:
        """`width` of a stored key, and the hash of the `model` that makes it: `load` compares both."""
        self.storage = storage
        self.width = width
        self.model = model
        self.pieces: list[Piece] = []  # committed, in order
        self.calls: list[tuple[int, int]] = []  # (start, length) of every read; the last bits depend on them
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
        if isinstance(self.storage, NarrowStorage):
            states = self.storage.read(session, inputs_embeds, self.length)
        else:
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
        self.calls.clear()
        self.length = 0

    def to_host(self) -> Tensors:
        """Copies of the committed keys and values."""
        return self.storage.to_host(self.committed)

    def save(self, path: Path) -> None:
        """Write the committed prefix and how it came about as one safetensors file. Raises `OSError`."""
        visual = {f"visual.{i}": p.visual for i, p in enumerate(self.pieces) if p.visual is not None}
        tensors: Tensors = {**self.to_host(), **visual}
        story = {"pieces": [[p.frame, p.ids] for p in self.pieces], "calls": self.calls}
        facts = {"format": FORMAT, "model": self.model, "width": self.width, "story": json.dumps(story)}
        write_file(path, save(tensors, {**facts, "sha256": _checksum(tensors, facts)}))

    def load(self, path: Path) -> None:
        """Fill this cache with what `save` wrote, and compare what is then in it with the file.

        Raises `BundleError` for a file that is damaged, of another model or width, or too long.
        """
        tensors, facts = _read(path)
        for fact, mine in (("model", self.model), ("width", self.width)):
            if (said := facts.get(fact, "none")) != mine:
                raise BundleError(
                    f"`{path}` was saved with {fact} `{_short(said)}`; here it is `{_short(mine)}`",
                    _READ_AGAIN,
                )
        self.clear()
        try:
            story = json.loads(facts["story"])
            self.pieces = [
                Piece(frame, tuple(ids), tensors.pop(f"visual.{i}", None))
                for i, (frame, ids) in enumerate(story["pieces"])
            ]
            self.calls = [(start, length) for start, length in story["calls"]]
            if (held := self.committed) > self.capacity:
                self.clear()
                raise BundleError(
                    f"`{path}` holds {held} tokens; the cache has room for {self.capacity}", _READ_AGAIN
                )
            self.storage.from_host(tensors)
        except (KeyError, ValueError, TypeError) as fault:
            self.clear()
            raise BundleError(f"`{path}` is no saved story context: {fault}", _READ_AGAIN) from fault
        if not _equal(self.to_host(), tensors):
            self.clear()
            raise BundleError(f"`{path}` does not fit what this model keeps of a story", _READ_AGAIN)
        self.rewind()


def _read(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a saved cache that is whole. Raises `BundleError`."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except Exception as fault:  # a damaged header is met in several ways
        raise BundleError(f"`{path}` is no saved story context: {fault}", _READ_AGAIN) from fault
    said = facts.pop("sha256", None)
    if facts.get("format") != FORMAT:
        raise BundleError(f"`{path}` has format `{facts.get('format')}`, `{FORMAT}` is needed", _READ_AGAIN)
    if said != _checksum(tensors, facts):
        raise BundleError(f"`{path}` is damaged: its contents are not those that were saved", _READ_AGAIN)
    return tensors, facts


def _checksum(tensors: Tensors, facts: Mapping[str, str]) -> str:
    """SHA-256 of everything in the file but itself."""
    digest = hashlib.sha256(json.dumps(dict(sorted(facts.items()))).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype.str} {tensors[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


def _equal(first: Tensors, second: Tensors) -> bool:
    return first.keys() == second.keys() and all(
        one.dtype == second[name].dtype and np.array_equal(one, second[name]) for name, one in first.items()
    )


def _short(fact: str) -> str:
    """A hash as people compare it; a width is short already."""
    return fact[:12]
