"""`storyv-lite train`: from nothing, or from where it stopped, to a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.cli.console import hush_libraries, say, say_json
from storyv_lite.cli.options import DeviceOption, JsonOption
from storyv_lite.config import STAGES
from storyv_lite.optional import require


def train(
    preset: Annotated[str, typer.Option(help="What to train; `toon-smoke` takes minutes.")] = "toon",
    stage: Annotated[
        list[str] | None, typer.Option(help=f"Only this stage; may be repeated: {', '.join(STAGES)}.")
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to write [default: checkpoints/PRESET].")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many; the same command goes on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model, or go on where it stopped."""
    hush_libraries()
    for module in ("torch", "transformers", "diffusers", "accelerate", "skia"):
        require(module, "train")
    from storyv_lite.train import recipes

    folder = out or Path("checkpoints") / preset
    done = recipes.run(preset, stage or STAGES, device, folder, settings or (), minutes)
    say(f"wrote {folder}")
    say("next: storyv-lite export --int4" if done else "not finished; the same command goes on")
    if as_json:
        say_json({"checkpoint": str(folder), "done": done})
