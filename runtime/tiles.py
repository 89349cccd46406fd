"""Decoding in tiles: latents larger than a tile become a picture piece by piece, blended at the seams.

Knows where tiles lie and what each weighs; the decoder is a function. The memory of decoding is that of one
tile and the picture. A tile's rim is wrong where it lies inside the picture, since the decoder sees nothing
beyond it: the outer quarter of an overlap is left to the neighbour, the middle half is blended.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from numpy.typing import NDArray

from storyv_lite.errors import ConfigError

Floats = NDArray[np.float32]

SMALLEST = 4  # cells of latents; below it a tile is mostly rim


def check_tile(tile: int) -> None:
    """Raise `ConfigError` for a tile that is too small; 0 stands for none."""
    if tile and tile < SMALLEST:
        raise ConfigError(
            f"a tile has {tile} cells of latents; {SMALLEST} or more are needed",
            hint="give a larger one with `--tile`, or none to decode pictures whole",
        )


def tile_starts(size: int, tile: int) -> list[int]:
    """Where the tiles of one side begin: evenly, and each overlaps the next by a third at least."""
    if tile >= size:
        return [0]
    overlap = -(-tile // 3)
    count = -(-(size - overlap) // (tile - overlap))
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def tile_weights(size: int, tile: int, scale: int) -> NDArray[np.float64]:
    """What each tile of one side weighs at every pixel, (tiles, size * scale); sums to 1 at each."""
    starts = tile_starts(size, tile)
    place = (np.arange(size * scale) + 0.5) / scale
    weights = np.zeros((len(starts), size * scale))
    for index, start in enumerate(starts):
        inside = (place > start) & (place < start + tile)
        rising = falling = np.ones_like(place)
        if index > 0:
            rising = _ramp(place - start, starts[index - 1] + tile - start)
        if index + 1 < len(starts):
            falling = _ramp(start + tile - place, start + tile - starts[index + 1])
        weights[index] = np.where(inside, np.minimum(rising, falling), 0)
    weights /= weights.sum(axis=0)
    return weights


def decoded_part(size: int, tile: int) -> float:
    """How much is decoded in tiles, of a square picture that is 1."""
    return (len(tile_starts(size, tile)) * min(tile, size) / size) ** 2


def decode_tiles(decode: Callable[[Floats], Floats], latents: Floats, tile: int) -> Floats:
    """The picture (1, 3, H, W) of latents (1, channels, h, w); `decode` does the same for one tile.

    Latents that fit into one tile are decoded whole.
    """
    height, width = latents.shape[2:]
    if tile >= max(height, width):
        return decode(latents)
    picture: Floats | None = None
    ways = [tile_starts(size, tile) for size in (height, width)]
    for (row, top), (column, left) in product(*map(enumerate, ways)):
        piece = decode(np.ascontiguousarray(latents[:, :, top : top + tile, left : left + tile]))
        scale = piece.shape[2] // min(tile, height)
        if picture is None:
            picture = np.zeros((1, piece.shape[1], height * scale, width * scale), dtype=np.float32)
            down, across = (tile_weights(size, tile, scale) for size in (height, width))
        rows = slice(top * scale, top * scale + piece.shape[2])
        columns = slice(left * scale, left * scale + piece.shape[3])
        weight = down[row][rows, None] * across[column][None, columns]
        picture[:, :, rows, columns] += piece * weight.astype(np.float32)
    assert picture is not None  # there is always a tile
    return picture


def _ramp(distance: NDArray[np.float64], overlap: int) -> NDArray[np.float64]:
    """From 0 to 1 over the middle half of an overlap; never quite 0, where a tile may be alone."""
    return np.clip((distance - overlap / 4) / (overlap / 2), 1e-6, 1)
