"""`storyv-lite render`: a story becomes pictures, a storyboard, a page and a receipt.

Knows options and messages; a frame is `StoryPipeline`'s business, its files `StoryboardFolder`'s.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.cli.console import note, progress, say, say_json, seconds, warn
from storyv_lite.cli.options import (
    BundleOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    free_folder,
    make_folder,
)
from storyv_lite.errors import OutputError
from storyv_lite.memory import format_bytes
from storyv_lite.story import Story, read_story

if TYPE_CHECKING:
    from storyv_lite.bundle import Degraded
    from storyv_lite.runtime.pipeline import Progress, StoryPipeline

SHOWN_WORDS = 12


def render(
    story: Annotated[
        str, typer.Argument(metavar="STORY", help="A .txt, .json or .jsonl file, or - for standard input.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write [default: STORY-storyboard]."),
    ] = None,
    bundle: BundleOption = "",
    seed: Annotated[int, typer.Option(metavar="N", help="Another number draws the story another way.")] = 0,
    steps: Annotated[
        int | None, typer.Option(metavar="N", help="Denoising steps [default: the bundle's].")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(metavar="SCALE", help="Guidance scale [default: the bundle's].")
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a story."""
    began = time.perf_counter()
    told = read_story(story)
    stem = "story" if story == "-" else Path(story).stem
    title = told.title or stem.replace("-", " ").replace("_", " ").capitalize()

    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.runtime.storyboard_folder import PAGE, StoryboardFolder

    pipeline = StoryPipeline.from_bundle(bundle or None, device)
    note(f"bundle: {pipeline.bundle.path} ({pipeline.reason})")
    warn_of_degraded(pipeline.bundle.degraded)
    note(f"device: {pipeline.backend.device} ({pipeline.backend.reason})")
    with progress() as show:
        frames = pipeline.draw(told, seed, steps, guidance, lambda at: show(_line(at, told)))
        warn_of_unknown_words(pipeline, told)
        folder = out or free_folder(stem, Path())
        make_folder(folder, force)
        drawn = StoryboardFolder(folder, told, title, pipeline, pipeline.settings(seed, steps, guidance))
        try:
            drawn.clear()
            for frame in frames:
                drawn.add(frame)
            receipt = drawn.finish(time.perf_counter() - began)
        except KeyboardInterrupt:
            note(f"{len(drawn.panels)} of {len(told.captions)} frames are in {folder}")
            raise
        except OSError as fault:
            reason = (fault.strerror or str(fault)).lower()
            raise OutputError(f"`{folder}` cannot be written: {reason}", "name another with `-o`") from fault
    _say_reduced(receipt["frames"])
    peak = receipt["memory_bytes"]["peak"]
    count = "1 frame" if len(told.captions) == 1 else f"{len(told.captions)} frames"
    memory = f", {format_bytes(peak)} of memory at most" if peak else ""
    say(f"wrote {folder}: {count}, storyboard.png, index.html, story.json")
    say(f"{seconds(receipt['seconds'])}{memory}")
    say(f"next: open {folder / PAGE}, or draw it another way with --seed {seed + 1}")
    if as_json:
        say_json({"folder": str(folder), **receipt})


def warn_of_degraded(degraded: "tuple[Degraded, ...]") -> None:
    """Say what the parity gate found and the exporter kept."""
    if degraded:
        figures = ", ".join(
            f"`{d.component}` {d.metric} {d.value:.4g} (limit {d.limit:.4g})" for d in degraded
        )
        warn(f"this bundle is degraded: {figures}\n  it was written with `--allow-degraded`")


def warn_of_unknown_words(pipeline: "StoryPipeline", story: Story) -> None:
    """Name the words the model has never read, and what it knows instead."""
    words = pipeline.unknown_words(story)
    if not words:
        return
    more = f" and {len(words) - SHOWN_WORDS} more" if len(words) > SHOWN_WORDS else ""
    known = ", ".join(one.name.capitalize() for one in pipeline.bundle.characters)
    places = ", ".join(pipeline.bundle.vocabulary.get("places", ()))
    warn(
        f"the model has never read: {', '.join(words[:SHOWN_WORDS])}{more}\n"
        f"  it knows {known}; places: {places}; everything: storyv-lite characters"
    )


def _say_reduced(records: list[dict[str, object]]) -> None:
    reduced = sum(1 for record in records if record["reduced_context"])
    if reduced:
        note(
            f"note: the story is longer than the model's context; {reduced} frames were drawn after those "
            "that introduce a character and the latest ones (story.json says which)"
        )


def _line(at: "Progress", story: Story) -> str:
    doing = {"read": "reading", "draw": f"step {at.step} of {at.steps}", "decode": "finishing"}[at.phase]
    return f"frame {at.frame + 1} of {at.frames}, {doing}: {story.captions[at.frame].text[:60]}"
