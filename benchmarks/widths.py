"""Bundles of one model side by side: bytes, and how far their pictures are from those of full precision.

Run `python -m storyv_lite.benchmarks.widths --wide FP32_BUNDLE BUNDLE... [--checkpoint FOLDER]`; draws the
calibration stories that the parity gate draws, or more with `--stories`, and prints a table. Shows whether
mixed widths beat one width of the same size.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import Bundle
from storyv_lite.errors import StoryVError
from storyv_lite.optional import require

COMMAND = "python -m storyv_lite.benchmarks.widths"
CHECKPOINT, STORIES = Path("checkpoints/toon"), 2


def compare_bundles(
    wide: Path, bundles: Sequence[Path], stories: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Bytes and figures of each bundle, by the name of its folder. Raises `BundleError`."""
    from storyv_lite.export.story_parity import draw_compared, measure

    reference = draw_compared(wide, stories, len(stories))
    return {
        bundle.name: {
            "bytes": Bundle.open(bundle).total_bytes,
            **measure(draw_compared(bundle, stories, len(stories)), reference),
        }
        for bundle in bundles
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Bundles against full precision.")
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--wide", type=Path, required=True, help="the same model exported with `--fp32`")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help=f"its stories [{CHECKPOINT}]")
    parser.add_argument("--stories", type=int, default=STORIES, help=f"how many are drawn [{STORIES}]")
    asked = parser.parse_args(arguments)
    try:
        require("onnx", "export")
        from storyv_lite.export.calibrate import read_stories

        stories = read_stories(asked.checkpoint)[: asked.stories]
        found = compare_bundles(asked.wide, asked.bundles, stories)
    except StoryVError as fault:
        return failed(fault)
    names = list(next(iter(found.values())))
    rows = [[bundle, *(f"{figures[name]:g}" for name in names)] for bundle, figures in found.items()]
    print(markdown_table([["bundle", *names], *rows]))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
