"""Pictures decoded in tiles against the same pictures decoded whole.

Run `python -m storyv_lite.benchmarks.tiles [--bundle BUNDLE]`: draws the picnic and prints the PSNR of every
frame for some sizes of tiles, and how much more is decoded.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.measure import PICNIC
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import StoryVError

if TYPE_CHECKING:
    from storyv_lite.runtime.pipeline import StoryPipeline

COMMAND = "python -m storyv_lite.benchmarks.tiles"


def psnr(mean_square: float) -> float:
    """Of pixels in 0..255, in dB; infinite where there is no error."""
    return float(10 * np.log10(255**2 / mean_square)) if mean_square else float("inf")


def measure(
    pipeline: "StoryPipeline", captions: Sequence[str], tiles: Sequence[int]
) -> dict[int, list[float]]:
    """PSNR in dB of every frame of a story, by the size of tiles in cells of latents."""
    from storyv_lite.story import Caption, Story

    latents = _Kept()
    frames = list(pipeline.draw(Story(tuple(map(Caption, captions))), latents=latents))
    return {
        tile: [
            psnr(np.square(pipeline.model.decode(one, tile).astype(float) - frame.image).mean())
            for one, frame in zip(latents.all, frames, strict=True)
        ]
        for tile in tiles
    }


class _Kept:
    """Latents of every frame, in memory."""

    def __init__(self) -> None:
        self.all: list[NDArray[np.float32]] = []

    def get(self, frame: int) -> None: ...

    def put(self, frame: int, latents: NDArray[np.float32]) -> None:
        self.all.append(latents)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Pictures in tiles against whole ones.")
    parser.add_argument("--bundle", default=None, help="folder or name [as `render` chooses]")
    parser.add_argument("--tile", type=int, nargs="+", default=[6, 8, 10, 12, 14], help="[6 8 10 12 14]")
    asked = parser.parse_args(arguments)
    try:
        from storyv_lite.runtime.pipeline import StoryPipeline
        from storyv_lite.runtime.tiles import check_tile, decoded_part

        for tile in asked.tile:
            check_tile(tile)
        pipeline = StoryPipeline.from_bundle(asked.bundle, "cpu")
        found = measure(pipeline, PICNIC, asked.tile)
    except StoryVError as fault:
        return failed(fault)
    size = pipeline.bundle.model.dimensions.latent_size
    rows = [
        [str(tile), f"{decoded_part(size, tile):.2f}", f"{min(values):.1f}", f"{np.mean(values):.1f}"]
        for tile, values in found.items()
    ]
    head = [f"cells of {size}", "decoded, whole = 1", "PSNR of the worst frame, dB", "on average"]
    print(markdown_table([head, *rows]))
    print(json.dumps({"bundle": pipeline.bundle.name, "psnr_db": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
