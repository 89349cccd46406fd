"""A checkpoint as it is committed: 16-bit weights, what `export` and fine-tuning need, no local state.

Run as `python -m storyv_lite.train.publish CHECKPOINT OUT`. Knows which files make a checkpoint, not what any
component does. Training on in the result is a warm resume.
"""

import shutil
import sys
from pathlib import Path

import torch

from storyv_lite.errors import OutputError, StoryVError
from storyv_lite.modeling.checkpoints import load_component, read_checkpoint, save_component

KEPT = ("scheduler", "tokenizers", "characters")
FILES = ("vocabulary.json", "calibration.jsonl", "checkpoint.json")


def publish(checkpoint: Path, out: Path) -> Path:
    """Copy `checkpoint` to `out` with its weights in 16 bits; `checkpoint.json` comes last.

    Raises `BundleError` for a folder that is no checkpoint, `OutputError` when `out` is there already.
    """
    read_checkpoint(checkpoint)
    if out.exists():
        raise OutputError(f"`{out}` is there already", hint=f"choose another folder, or first: rm -r {out}")
    for config in sorted(checkpoint.glob("*/config.json")):
        save_component(load_component(config.parent), out / config.parent.name, dtype=torch.float16)
    for name in KEPT:
        shutil.copytree(checkpoint / name, out / name)
    if (metrics := checkpoint / "metrics.jsonl").is_file():
        shutil.copyfile(metrics, out / metrics.name)
    for name in FILES:
        shutil.copyfile(checkpoint / name, out / name)
    return out


if __name__ == "__main__":
    try:
        print(f"wrote {publish(Path(sys.argv[1]), Path(sys.argv[2]))}")
    except StoryVError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
