"""`storyv-lite train`: from nothing, or from where it stopped, to a checkpoint."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.checkpoint import RECORD
from storyv_lite.cli.console import say, say_json
from storyv_lite.cli.options import DeviceOption, JsonOption
from storyv_lite.config import STAGES
from storyv_lite.optional import require


def train(
    preset: Annotated[
        str,
        typer.Option(
            metavar="PRESET", help="What to train: toon, toon-smoke (minutes), opt-6.7b, llama-2-7b."
        ),
    ] = "toon",
    stage: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help=f"Only this stage; may be repeated: {', '.join(STAGES)}."),
    ] = None,
    device: DeviceOption = "auto",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write [default: checkpoints/PRESET]."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings in a TOML file, on top of the preset."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="SETTING", help="section.key=value; may be repeated.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, metavar="MINUTES", help="Stop after so many; the same command goes on."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a model, or go on where it stopped. Ctrl-C stops after the step at hand, everything saved."""
    for module in ("torch", "transformers", "diffusers", "accelerate", "skia"):
        require(module, "train")
    from storyv_lite.modeling.checkpoints import stage_record
    from storyv_lite.train import recipes
    from storyv_lite.train.loop import STOP

    folder = out or Path("checkpoints") / preset
    record = folder / RECORD
    before = record.stat().st_mtime_ns if record.is_file() else None
    done = recipes.run(preset, stage or STAGES, device, folder, settings or (), minutes, config)
    written = record.stat().st_mtime_ns != before
    asked = f"{', '.join(stage)} in {folder}" if stage else folder
    say(f"wrote {folder}" if written else f"nothing to do: {asked} is finished")
    if not done:
        say("not finished; the same command goes on")
    elif all(stage_record(folder, name).get("done") for name in STAGES):
        say(f"next: storyv-lite export {shlex.quote(str(folder))} --int4")
    else:
        say("next: the other stages, by the same command without `--stage`")
    if as_json:
        say_json({"checkpoint": str(folder), "done": done})
    if STOP.is_set() and not done:
        raise typer.Exit(130)
