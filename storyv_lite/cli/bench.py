"""`storyv-lite bench`: what a bundle costs in time, memory and bytes."""

import json
from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.bundle import find_bundle
from storyv_lite.cli.console import note, progress, say, say_json
from storyv_lite.cli.options import DeviceOption, ForceOption, JsonOption, command_line
from storyv_lite.errors import ConfigError
from storyv_lite.outputs import check_file


def bench(
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE", help="Bundle to measure; may be repeated [default: as `render` chooses]."
        ),
    ] = None,
    story: Annotated[
        Path | None, typer.Option(metavar="STORY", help="Story to draw [default: a picnic, 5 frames].")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw so many frames, beginning again where the story ends."),
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Processes per bundle.")] = 3,
    device: DeviceOption = "cpu",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="CPU threads [default: one per core].")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a Markdown report here.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write everything measured as JSON here.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure seconds, memory and bytes of bundles, each in a process of its own."""
    for name, value, least in (("repeat", repeat, 1), ("frames", frames, 2), ("threads", threads, 1)):
        if value is not None and value < least:
            raise ConfigError(f"`--{name}` is {value}; {least} or more is needed", f"give `--{name} {least}`")
    for file in (report, record):
        if file is not None:
            check_file(file, force)
    from storyv_lite.benchmarks import measure
    from storyv_lite.benchmarks.machine import this_machine
    from storyv_lite.benchmarks.report import make_record, markdown, print_tables
    from storyv_lite.story import read_story

    bundles = {}
    for asked in bundle or [""]:
        path, why = find_bundle(asked or None)
        bundles[asked or path.name] = path
        note(f"bundle: {asked or path.name} ({why})")
    told = [caption.text for caption in read_story(story).captions] if story else list(measure.PICNIC)
    captions = measure.repeat_captions(told, frames)
    machine = this_machine()  # its load, before this run adds to it
    with progress() as show:
        rows = measure.measure_bundles(bundles, captions, repeat, device, threads, show)
    options = {
        "bundle": bundle, "story": story, "frames": frames, "repeat": repeat, "device": device,
        "threads": threads, "report": report, "record": record,
        "force": report is not None or record is not None,
    }  # fmt: skip
    result = make_record(rows, captions, repeat, command_line("bench", options), machine)
    print_tables(rows)
    for file, text in ((report, markdown(result, rows)), (record, json.dumps(result, indent=1) + "\n")):
        if file is not None:
            file.write_text(text, encoding="utf-8", newline="\n")
            say(f"wrote {file}")
    if as_json:
        say_json(result)
    if any(row.error for row in rows):
        raise typer.Exit(1)
