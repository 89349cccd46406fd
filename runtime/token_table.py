"""The language model's token table on the disk: rows are gathered where they lie, the whole is never loaded.

Knows the two places it comes from: a bundle's float16 `.npy` file, and the weights of a checkpoint.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storyv_lite.checkpoint import TOKEN_ROWS, embedding_scale, train_command
from storyv_lite.errors import BundleError
from storyv_lite.tensors import open_shards

_FLOATS: dict[str, type[np.floating[Any]]] = {"F16": np.float16, "F32": np.float32}


class TokenTable(Protocol):
    """A table (vocab_size, hidden_size) that gives rows by their numbers."""

    def __getitem__(self, ids: NDArray[np.int64], /) -> NDArray[Any]: ...


class _BFloat16:
    """Rows of a type that numpy does not have: the upper half of a float32."""

    def __init__(self, bits: NDArray[np.uint16]) -> None:
        self._bits = bits

    def __getitem__(self, ids: NDArray[np.int64], /) -> NDArray[np.float32]:
        return (self._bits[ids].astype(np.uint32) << 16).view(np.float32)


class _Scaled:
    """Rows of a language model that multiplies them before it reads them; a bundle's are so already."""

    def __init__(self, table: TokenTable, scale: float) -> None:
        self._table, self._scale = table, np.float32(scale)

    def __getitem__(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._table[ids].astype(np.float32) * self._scale


def open_table(file: Path, vocab_size: int, hidden_size: int) -> TokenTable:
    """Map the table. Raises `BundleError` when it is missing, damaged or of another size."""
    shape = (vocab_size, hidden_size)
    if file.suffix == ".npy":
        return _npy(file, shape)
    table, scale = _of_weights(file, shape), embedding_scale(file.parent)
    return table if scale == 1 else _Scaled(table, scale)


def _of_weights(file: Path, shape: tuple[int, int]) -> TokenTable:
    with open_shards(file.parent) as tensors:
        found = next((tensor for name, tensor in tensors.items() if name.endswith(TOKEN_ROWS)), None)
        if found is None:
            hint = train_command(file.parent.parent)
            raise BundleError(f"`{file}` lacks a token table, `{TOKEN_ROWS}`", hint)
        if found.shape != shape or found.dtype not in (*_FLOATS, "BF16"):
            raise BundleError(
                f"the token table in `{file}` is {found.dtype} {found.shape}; {shape} is needed"
            )
        if found.dtype == "BF16":
            return _BFloat16(found.map().view(np.uint16).reshape(shape))
        return found.map().view(_FLOATS[found.dtype]).reshape(shape)


def _npy(file: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    try:
        table: NDArray[np.float16] = np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError as fault:
        raise BundleError(f"`{file}` is no table: {fault}") from fault
    if table.shape != shape or table.dtype != np.float16:
        raise BundleError(f"`{file}` holds {table.dtype} {table.shape}; float16 {shape} is needed")
    return table
