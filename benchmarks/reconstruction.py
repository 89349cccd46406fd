"""How much of a picture survives the autoencoder: decibels, and what the judge still reads in it.

Run `python -m storyv_lite.benchmarks.reconstruction [CHECKPOINT] [--frames N] [--write]`: real frames of test
seeds go in and come out. Nothing of the denoiser is looked at.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks import quality
from storyv_lite.benchmarks.command import check_written, failed, typed
from storyv_lite.benchmarks.machine import versions
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import StoryVError
from storyv_lite.optional import require

COMMAND = "python -m storyv_lite.benchmarks.reconstruction"
CHECKPOINT, RESULT = Path("checkpoints/toon"), Path("benchmarks/results/reconstruction.json")
FRAMES, SEED = 1000, 42


def table(report: dict[str, Any]) -> str:
    """One row for each figure: real frames, and the same through the autoencoder."""
    rows = [["figure", "real frames", "through the autoencoder"]]
    for name, value in report["autoencoder"].items():
        rows.append([name, str(report["real"].get(name, "")), str(value)])
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Real frames through the autoencoder.")
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT, help=f"[{CHECKPOINT}]")
    parser.add_argument("--judge", type=Path, help="folder of the judge [the checkpoint's]")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"[{FRAMES}]")
    parser.add_argument("--write", action="store_true", help=f"also write {RESULT}")
    asked = parser.parse_args(arguments)
    try:
        check_written(RESULT if asked.write else None)
        for module in ("torch", "diffusers", "skia"):
            require(module, "train")
        from storyv_lite.modeling.checkpoints import read_checkpoint
        from storyv_lite.train import autoencoder
        from storyv_lite.train.judge import examine

        folder, _ = quality.find_judge(asked.judge, asked.checkpoint, Path.cwd())
        model = autoencoder.load(asked.checkpoint)
        size = int(read_checkpoint(asked.checkpoint)["dimensions"]["image_size"])
        report = examine(quality.load_judge(folder), model, SEED, asked.frames, size)
    except StoryVError as fault:
        return failed(fault)
    command = typed(COMMAND, arguments)
    report = {"schema": 1, "command": command, "versions": versions(), "seed": SEED, **report}
    print(table(report))
    print(json.dumps(report))
    if asked.write:
        RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
