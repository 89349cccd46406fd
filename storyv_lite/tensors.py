"""Tensors of a safetensors file, each mapped by itself: no weight is in memory before it is touched, and none
longer than somebody holds it.

The library maps a file as a whole, and every page ever touched stays counted until the whole is closed; under
a budget a large model must be read tensor by tensor. Knows the file format and numpy, no framework.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from storyv_lite.checkpoint import train_command
from storyv_lite.errors import BundleError

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS: dict[str, type[np.generic]] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
}  # fmt: skip
MAX_HEADER_BYTES = 100 * 10**6  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies; `dtype` is the format's word, such as `F16`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file
    stream: BinaryIO

    def map(self) -> NDArray[np.uint8]:
        """The bytes of the tensor, copied where they are written to; they outlive the open file."""
        count = math.prod(self.shape) * BYTES[self.dtype]
        if not count:
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(self.stream, np.uint8, "c", self.offset, (count,))

    def read(self) -> NDArray[np.float32]:
        """The tensor in float32, by a positioned read: no page of the file stays counted for this process."""
        kind = _FLOATS.get(self.dtype)
        if kind is None:
            raise BundleError(f"a tensor of type {self.dtype} is no weight; {', '.join(_FLOATS)} are")
        stored = np.empty(self.shape, kind)
        target, place = stored.reshape(-1).view(np.uint8).data, self.offset
        while target:
            self.stream.seek(place)
            if not (count := self.stream.readinto(target)):  # type: ignore[attr-defined]
                raise BundleError(f"`{self.stream.name}` has become shorter while it was read")
            target, place = target[count:], place + count
        if self.dtype == "BF16":  # the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32, copy=False)


@contextmanager
def open_tensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a file by name, all of one state of it even if it is replaced meanwhile.

    Raises `BundleError` when the file is missing or damaged.
    """
    try:
        stream = path.open("rb")
    except OSError:
        raise BundleError(f"`{path}` is missing", hint=train_command(path.parent.parent)) from None
    with stream:
        try:
            tensors = _header(stream, os.fstat(stream.fileno()).st_size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as damage:
            hint = train_command(path.parent.parent)
            raise BundleError(f"`{path}` is damaged ({damage})", hint) from damage
        yield tensors


@contextmanager
def open_shards(folder: Path, weights: str = "model.safetensors") -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a component's folder, in one file `weights` or in those that `weights.index.json` names.

    Raises `BundleError` when a file is missing or damaged, or lies outside the folder.
    """
    index = folder / f"{weights}.index.json"
    files = [weights]
    if not (folder / weights).exists() and index.is_file():
        try:
            files = sorted(
                set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as damage:
            hint = train_command(folder.parent)
            raise BundleError(f"`{index}` is damaged ({damage})", hint) from damage
    with ExitStack() as opened:
        tensors: dict[str, StoredTensor] = {}
        for file in files:
            if Path(file).name != file:
                raise BundleError(f"`{index}` names `{file}`, which is outside `{folder}`")
            tensors |= opened.enter_context(open_tensors(folder / file))
        yield tensors


def _header(stream: BinaryIO, size: int) -> dict[str, StoredTensor]:
    length = int.from_bytes(stream.read(8), "little")
    if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header has {length} bytes, the file {size}")
    header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
        tensor = StoredTensor(entry["dtype"], tuple(map(int, entry["shape"])), begin, stream)
        if end > size or end - begin != math.prod(tensor.shape) * BYTES[tensor.dtype] or begin < 8 + length:
            raise ValueError(f"`{name}` does not lie where the header says")
        tensors[name] = tensor
    return tensors
