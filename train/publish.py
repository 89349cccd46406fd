"""A checkpoint as it is committed: 16-bit weights, what `export` and fine-tuning need, no local state.

Run as `python -m storyv_lite.train.publish CHECKPOINT OUT`. Knows which files make a checkpoint, not what any
component does. Training on in the result is a warm resume.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

import torch

from storyv_lite.checkpoint import open_checkpoint, train_command, unfinished
from storyv_lite.errors import BundleError, OutputError, StoryVError
from storyv_lite.modeling.checkpoints import load_component, replace_folder, save_component

KEPT = ("scheduler", "tokenizers", "characters")
FILES = ("vocabulary.json", "calibration.jsonl", "checkpoint.json")


def publish(checkpoint: Path, out: Path) -> Path:
    """Copy `checkpoint` to `out`, whole or not at all, with its weights in 16 bits.

    Raises `BundleError` for a folder that is no finished checkpoint, `OutputError` when `out` is there.
    """
    open_checkpoint(checkpoint)
    if stages := unfinished(checkpoint):
        raise BundleError(
            f"`{checkpoint}` is not finished: {', '.join(stages)}", hint=train_command(checkpoint, stages[0])
        )
    if missing := [name for name in (*KEPT, *FILES) if not (checkpoint / name).exists()]:
        raise BundleError(
            f"`{checkpoint / missing[0]}` is missing", hint=f"finish it: {train_command(checkpoint)}"
        )
    if out.exists():
        hint = f"choose another folder, or first: {shlex.join(['rm', '-r', str(out)])}"
        raise OutputError(f"`{out}` is there already", hint=hint)

    def write(new: Path) -> None:
        for config in sorted(checkpoint.glob("[!.]*/config.json")):
            save_component(load_component(config.parent), new / config.parent.name, dtype=torch.float16)
        for name in KEPT:
            shutil.copytree(checkpoint / name, new / name)
        for name in (*FILES, "metrics.jsonl"):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, new / name)

    replace_folder(out, write)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a checkpoint as it is committed.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    asked = parser.parse_args()
    try:
        print(f"wrote {publish(asked.checkpoint, asked.out)}")
    except StoryVError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
