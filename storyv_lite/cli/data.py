"""`storyv-lite data`: training data in the project's own format."""

from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.cli.console import say, say_json
from storyv_lite.cli.options import ForceOption, JsonOption, make_folder
from storyv_lite.optional import require

app = typer.Typer(help="Make training data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Make training data."""


@app.command()
def make(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")] = Path("data/toon"),
    stories: Annotated[int, typer.Option(min=1, help="How many stories.")] = 20,
    frames: Annotated[int, typer.Option(min=1, max=50, help="Frames of each story.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Which stories.")] = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw stories of the cartoon world as pictures, masks and captions: how your own data should look."""
    require("skia", "train")
    from storyv_lite.train.toonworld.dataset_files import write_dataset

    make_folder(out, force)
    write_dataset(out, stories, frames, seed=seed, force=force)
    say(f"wrote {out}: {stories * frames} pictures with masks, {stories} stories")
    say("next: read docs/reference/dataset.md for what each file holds, or storyv-lite train")
    if as_json:
        say_json({"folder": str(out), "stories": stories, "frames": stories * frames})
