"""`storyv-lite data`: training data in the project's own format."""

from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.cli.console import progress, say, say_json
from storyv_lite.cli.options import ForceOption, JsonOption
from storyv_lite.optional import require
from storyv_lite.outputs import make_folder

app = typer.Typer(help="Make training data.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Make training data."""


@app.command()
def make(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write.")] = Path(
        "data/toon"
    ),
    stories: Annotated[int, typer.Option(min=1, metavar="N", help="How many stories.")] = 20,
    frames: Annotated[int, typer.Option(min=1, max=50, metavar="N", help="Frames of each story.")] = 5,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Which stories.")] = 0,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw stories as pictures, masks and captions: how your own data should look."""
    require("skia", "train")
    from storyv_lite.train.toonworld.dataset_files import write_dataset

    make_folder(out, force)
    with progress() as show:
        written = write_dataset(
            out, stories, frames, seed=seed, force=force,
            progress=lambda done: show(f"story {done} of {stories}"),
        )  # fmt: skip
    hard = written["references"]["nameless"]
    say(f"wrote {out}: {stories * frames} pictures with masks, {stories} stories")
    say(f"captions after the first that name nobody: {hard:.0%}")
    say("next: read docs/reference/dataset.md for what each file holds")
    if as_json:
        say_json({"folder": str(out), "stories": stories, "frames": stories * frames})
