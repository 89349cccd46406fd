"""`storyv-lite ranges`: what 8 bits of what draws need to know, taken within little memory."""

import shlex
import shutil
from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.bundle import find_bundle
from storyv_lite.cli.console import note, progress, say, say_json
from storyv_lite.cli.options import ForceOption, JsonOption
from storyv_lite.optional import require_export
from storyv_lite.outputs import check_file


def ranges(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder [default: the newest]."),
    ] = None,
    bundle: Annotated[
        str,
        typer.Option(
            "--bundle",
            metavar="BUNDLE",
            help="Bundle made of this checkpoint, which draws the stories [default: newest in ./bundles].",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="File to write [default: NAME-ranges.json]."),
    ] = None,
    stories: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="How many calibration stories to draw [default: as export does]."
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take ranges of activations for `export --low-memory --int8`.

    A bundle of the checkpoint draws stories; then float32 parts run one after another on what it was fed.
    """
    require_export()
    from storyv_lite.export.assemble import newest_checkpoint
    from storyv_lite.export.stored_ranges import save_ranges, take_ranges

    if checkpoint is None:
        checkpoint = newest_checkpoint(Path.cwd())
        note(f"checkpoint: {checkpoint}")
    file = out or Path(f"{checkpoint.resolve().name}-ranges.json")
    check_file(file, force)
    drawing, why = find_bundle(bundle or None)
    note(f"bundle: {drawing} ({why})")
    work = file.with_name(f".{file.name}.parts")
    try:
        with progress() as show:
            taken = take_ranges(checkpoint, drawing, work, stories, progress=show)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    save_ranges(file, taken)
    counts = {str(component): len(found) for component, found in taken.components.items()}
    told = ", ".join(f"{count} of {component}" for component, count in counts.items())
    say(f"wrote {file} (ranges: {told})")
    names = [shlex.quote(str(path)) for path in (checkpoint, file)]
    say(f"next: storyv-lite export {names[0]} --low-memory --int8 --ranges {names[1]}")
    if as_json:
        say_json({"ranges": str(file), "checkpoint": str(checkpoint), "tensors": counts})
