"""Numbers for weights and activations: scales, levels, and how a weight is rounded to its level.

Knows arrays only; which layer is rounded how stands in `quantization`, how the result is written into a graph
in `quantize`. Two ways for blocks: every weight to its nearest level, and GPTQ (Frantar et al., 2022), which
rounds input by input and lets the inputs that follow make up for the error, by what the layer was fed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.quantization import BLOCK_SIZE

Array = NDArray[Any]
ROWS = 64  # rounded to nearest at a time
DAMPING = 0.1  # part of the inputs' mean square added to all of them; a tenth, because the stories are few


def per_channel(weight: Array, axis: int, low: int, high: int) -> tuple[Array, Array]:
    """Symmetric 8-bit weights and one float32 scale per index of `axis`."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / min(-low, high), 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scale.reshape(shape)), low, high).astype(np.int8), scale


def activation_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of unsigned 8-bit values that hold [low, high] and exactly zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255.0, 1e-8))
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def symmetric_scale(low: float, high: float) -> tuple[np.float32, np.int8]:
    """Scale and zero point of signed 8-bit values around zero."""
    return np.float32(max(-low, high, 1e-8) / 127.0), np.int8(0)


def blocks(weight: Array, bits: int, moments: Array | None = None) -> tuple[Array, Array]:
    """Pack a product's weight (K, N) for MatMulNBits: bytes (N, K/32, 32 * bits / 8) and scales (N, K/32).

    Symmetric around the middle of the unsigned range; scales are 16-bit floats, each from its block's largest
    weight. With `moments` (K, K), see `second_moments`, roundings make up for each other.
    """
    rows = weight.T  # (N, K)
    if moments is not None:
        levels, scales = _compensated(np.ascontiguousarray(rows, dtype=np.float32), bits, moments)
        return _packed(levels, bits), scales
    count, groups = len(rows), -(-rows.shape[1] // BLOCK_SIZE)
    packed = np.empty((count, groups, BLOCK_SIZE * bits // 8), np.uint8)
    scales = np.empty((count, groups), np.float16)
    for start in range(0, count, ROWS):  # rows know nothing of each other; a few at a time stay in the cache
        some = slice(start, start + ROWS)
        levels, scales[some] = _nearest(np.ascontiguousarray(rows[some], dtype=np.float32), bits)
        packed[some] = _packed(levels, bits)
    return packed, scales


def _packed(levels: Array, bits: int) -> Array:
    """Signed levels as unsigned bytes, two of 4 bits in each."""
    packed: Array = (levels + (1 << (bits - 1))).astype(np.uint8)
    return packed[..., 0::2] | (packed[..., 1::2] << 4) if bits == 4 else packed


def widen_blocks(packed: Array, scales: Array, bits: int, inputs: int) -> Array:
    """The weight (K, N) that a graph computes with after `blocks`; `inputs` is K."""
    halves = [packed & 15, packed >> 4] if bits == 4 else [packed]
    levels = np.stack(halves, axis=-1).reshape(*packed.shape[:-1], -1)
    wide = (levels.astype(np.float32) - (1 << (bits - 1))) * scales.astype(np.float32)[..., None]
    return np.ascontiguousarray(wide.reshape(len(wide), -1)[:, :inputs].T)


def second_moments(rows: Array) -> Array:
    """Sum over `rows` (count, K) of every product of two inputs, (K, K), in float64."""
    wide = rows.astype(np.float64)
    moments: Array = wide.T @ wide
    return moments


def _nearest(rows: Array, bits: int) -> tuple[Array, Array]:
    """Levels (N, K/32, 32) and scales (N, K/32) of rows (N, K)."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK_SIZE)))
    grouped = padded.reshape(len(rows), -1, BLOCK_SIZE)
    scales = _scales(grouped, bits)
    return _levels(grouped, scales[..., None], bits), scales


def _compensated(rows: Array, bits: int, moments: Array) -> tuple[Array, Array]:
    """As `_nearest`, by GPTQ: the error of each input is spread over the ones not yet rounded."""
    rows, inputs = rows.copy(), rows.shape[1]
    moments = moments.copy()
    diagonal = np.diag_indices(inputs)
    moments[diagonal] += DAMPING * moments[diagonal].mean() + 1e-12
    spread = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32)  # upper triangle
    levels, scales = [], []
    for start in range(0, inputs, BLOCK_SIZE):
        stop = min(start + BLOCK_SIZE, inputs)
        block = rows[:, start:stop]
        scale = _scales(block, bits)
        errors = np.empty_like(block)
        level = np.zeros((len(rows), BLOCK_SIZE), np.float32)
        for index in range(stop - start):
            at = start + index
            level[:, index] = _levels(block[:, index], scale, bits)
            left = block[:, index] - level[:, index] * scale.astype(np.float32)
            errors[:, index] = left / spread[at, at]
            block[:, index + 1 :] -= np.outer(errors[:, index], spread[at, at + 1 : stop])
        rows[:, stop:] -= errors @ spread[start:stop, stop:]
        levels.append(level)
        scales.append(scale)
    return np.stack(levels, axis=1), np.stack(scales, axis=1)


def _scales(grouped: Array, bits: int) -> Array:
    """Scales (...) of blocks (..., 32) that meet each block's largest weight at the end of the range."""
    index = np.abs(grouped).argmax(axis=-1, keepdims=True)
    extreme = np.take_along_axis(grouped, index, axis=-1)[..., 0]
    scales = (extreme / -(1 << (bits - 1))).astype(np.float16)
    tiny = np.finfo(np.float16).smallest_subnormal
    return np.where(scales == 0, tiny, scales).astype(np.float16)


def _levels(values: Array, scales: Array, bits: int) -> Array:
    middle = 1 << (bits - 1)
    levels: Array = np.clip(np.rint(values / scales.astype(np.float32)), -middle, middle - 1)
    return levels
