"""Pictures at the borders: pixels to what an encoder reads, decoder output to pixels, pixels to PNG files.

Knows numpy and Pillow; normalisation of pixels and latents is inside the exported graphs.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from storyv_lite.errors import BundleError

Pixels = NDArray[np.uint8]


def pixel_values(image: Pixels, size: int) -> NDArray[np.float32]:
    """A square picture (S, S, 3) as an encoder reads it: (1, 3, size, size) in [0, 1], shrunk by area."""
    if image.shape[0] != size:
        way = Image.Resampling.BOX if image.shape[0] > size else Image.Resampling.BILINEAR
        image = np.asarray(Image.fromarray(image).resize((size, size), way))
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(255)


def to_pixels(image: NDArray[np.float32]) -> Pixels:
    """What the decoder gives, (1, 3, H, W) in [0, 1], as (H, W, 3) in 0..255."""
    scaled = np.rint(np.clip(image[0], 0, 1) * 255)
    return np.ascontiguousarray(scaled.transpose(1, 2, 0).astype(np.uint8))


def read_portrait(path: Path) -> Pixels:
    """A portrait as a square RGB picture (S, S, 3), padded with white. Raises `BundleError`."""
    try:
        with Image.open(path) as file:
            white = Image.new("RGBA", file.size, "white")
            picture = Image.alpha_composite(white, file.convert("RGBA")).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        raise BundleError(f"`{path}` is no picture: {fault}") from fault
    side = max(picture.size)
    square = Image.new("RGB", (side, side), "white")
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square)


def png(image: Pixels, text: Mapping[str, str]) -> bytes:
    """A PNG file with text chunks; equal input gives equal bytes on one version of Pillow and zlib."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_itxt(key, value)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()
