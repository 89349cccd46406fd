"""What `render`, `redraw` and `continue` share: drawing what is pending, and what is said when that ends.

Knows messages; what is pending is the journal's business, files are `StoryboardFolder`'s.
"""

import errno
import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyv_lite.cli.console import note, progress, say, say_json, seconds, warn
from storyv_lite.errors import BudgetError, FrameError, OutputError, StoryVError
from storyv_lite.memory import format_bytes

if TYPE_CHECKING:
    from storyv_lite.manifest import Degraded
    from storyv_lite.runtime.pipeline import Progress, StoryPipeline
    from storyv_lite.runtime.storyboard_folder import StoryboardFolder
    from storyv_lite.story import Story

SHOWN_WORDS = 12

KeepGoingOption = Annotated[
    bool, typer.Option("--keep-going", help="When a frame fails, draw the others without it.")
]


@contextmanager
def writing(folder: Path, resume: str) -> Iterator[None]:
    """Be the only one who writes into an existing folder; `resume` is the command that goes on later.

    Raises `OutputError` when another process draws there, and when the disk is full.
    """
    from storyv_lite.runtime.disk import locked
    from storyv_lite.runtime.journal import JOURNAL

    try:
        with locked(folder):
            yield
    except BrokenPipeError:  # who read what is said has gone; the files are written
        raise
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        forbidden = fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        help = "make it writable" if forbidden else "make room"
        begun = (folder / JOURNAL).is_file()
        raise OutputError(
            f"`{folder}` cannot be written: {reason}",
            f"{help}, then: {resume}" if begun else f"{help}, or name another folder with `-o`",
        ) from fault


def take_over(drawn: "StoryboardFolder", retry: bool, resumed: bool) -> None:
    """Go on with what lies in the folder, and say what of it is not used, and whether bytes may differ."""
    from storyv_lite.runtime.storyboard_folder import made_with

    now = made_with(drawn.pipeline)
    otherwise = drawn.journal.made_otherwise(now)
    kept = {name: value for name, value in now.items() if name in ("provider", "plan", "ways", "tile")}
    drawn.journal = replace(drawn.journal, made_with={**drawn.journal.made_with, **kept})
    lost = drawn.go_on(retry, resumed)
    if lost:
        names = ", ".join(str(frame + 1) for frame in lost)
        first = drawn.journal.pending[0].frame + 1
        note(
            f"frames that failed or are not as they were written: {names}; drawn again from frame {first} on"
        )
    if otherwise and drawn.journal.pending:
        warn(f"bytes may differ from one unbroken run: {'; '.join(otherwise)}")


def draw_story(
    drawn: "StoryboardFolder",
    began: float,
    resume: str,
    keep_going: bool,
    as_json: bool,
    strict_budget: bool,
    after: str = "",
) -> None:
    """Draw what is pending, finish the folder and say so; `resume` is the command that goes on, `after` what
    may be done next. Raises `FrameError` for frames that could not be drawn and, where the budget is strict,
    `BudgetError` for memory beyond the plan; the pictures are there.
    """
    from storyv_lite.runtime.storyboard_folder import PAGE, SHEET

    folder, count = drawn.folder, len(drawn.journal.story.captions)
    warn_of_degraded(drawn.pipeline.bundle.degraded)
    warn_of_unknown_words(drawn.pipeline, drawn.journal.story)
    try:
        with progress() as show, _stopping() as check:

            def told(at: "Progress") -> None:
                check()
                show(_line(at, drawn.journal.story))

            _draw(drawn, told, keep_going, resume)
        receipt = drawn.finish(time.perf_counter() - began)
    except KeyboardInterrupt:
        note(f"stopped: {drawn.there} of {count} frames are in {folder}; go on with: {resume}")
        raise typer.Exit(130) from None
    _say_reduced(receipt["frames"])
    peak = receipt["memory_bytes"]["peak"]
    frames = "1 frame" if count == 1 else f"{count} frames"
    sheet = "" if drawn.journal.branch_of else f"{SHEET}, "
    say(f"wrote {folder}: {frames}, {sheet}{PAGE}, story.json")
    say(f"{seconds(receipt['seconds'])}{f', {format_bytes(peak)} of memory at most' if peak else ''}")
    say(f"next: open {shlex.quote(str(folder / PAGE))}{after}")
    if as_json:
        say_json({"folder": str(folder), **receipt})
    _refuse_failed(folder, receipt["frames"])
    if strict_budget:
        _refuse_exceeded(drawn)


def _refuse_exceeded(drawn: "StoryboardFolder") -> None:
    planned = drawn.measured_plan() or {"phases": []}
    over = [
        f"`{one['name']}` {format_bytes(one['measured_bytes'])}, planned {format_bytes(one['ram_bytes'])}"
        for one in planned["phases"]
        if (one["measured_bytes"] or 0) > one["ram_bytes"]
    ]
    if over:
        raise BudgetError(
            f"more memory was used than planned: {'; '.join(over)}",
            f"{drawn.folder} is complete; give a larger `--ram`, or draw without `--strict-budget`",
        )


def say_complete(drawn: "StoryboardFolder", as_json: bool) -> None:
    """Say that there is nothing to do. Raises `FrameError` for frames that could not be drawn."""
    from storyv_lite.runtime.journal import RECEIPT

    say(f"nothing to do: {drawn.folder} is finished")
    receipt = json.loads((drawn.folder / RECEIPT).read_text(encoding="utf-8"))
    if as_json:
        say_json({"folder": str(drawn.folder), **receipt})
    _refuse_failed(drawn.folder, receipt["frames"])


def warn_of_degraded(degraded: "tuple[Degraded, ...]") -> None:
    """Say what the parity gate found and the exporter kept."""
    if degraded:
        figures = ", ".join(
            f"`{d.component}` {d.metric} {d.value:.4g} (limit {d.limit:.4g})" for d in degraded
        )
        warn(f"this bundle is degraded: {figures}\n  it was written with `--allow-degraded`")


def warn_of_unknown_words(pipeline: "StoryPipeline", story: "Story") -> None:
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


def _refuse_failed(folder: Path, records: list[dict[str, Any]]) -> None:
    failed = [f"frame {record['frame']} ({record['error']})" for record in records if "error" in record]
    if failed:
        raise FrameError(
            f"{len(failed)} of {len(records)} frames could not be drawn: {', '.join(failed)}",
            f"draw one another way: storyv-lite redraw {shlex.quote(str(folder))} --frame N --seed N",
        )


def _draw(
    drawn: "StoryboardFolder", told: Callable[["Progress"], None], keep_going: bool, resume: str
) -> None:
    failed: dict[str, Any] = {}
    try:
        for record in drawn.draw(told, keep_going):
            if "error" in record:
                failed = record
                if keep_going:
                    warn(f"frame {record['frame']} could not be drawn: {record['error']}")
    except StoryVError as fault:
        if not failed:
            raise
        raise type(fault)(
            f"frame {failed['frame']} could not be drawn: {fault.message}",
            f"{fault.hint + '; ' if fault.hint else ''}try it again: {resume}; "
            "draw the others without it: `--keep-going`",
        ) from fault


@contextmanager
def _stopping() -> Iterator[Callable[[], None]]:
    """Ctrl-C ends the drawing where the yielded function is called next; a second one ends it at once."""
    asked = threading.Event()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:  # somebody else decides what Ctrl-C does
        yield check
        return

    def stop(number: int, frame: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, stop)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


def _say_reduced(records: list[dict[str, Any]]) -> None:
    reduced = sum(1 for record in records if record.get("reduced_context"))
    if reduced:
        note(
            f"note: the story is longer than the context; {reduced} frames were drawn after those that "
            "introduce a character, the last that names a place and the latest ones (story.json says which)"
        )


def _line(at: "Progress", story: "Story") -> str:
    doing = {"read": "reading", "draw": f"step {at.step} of {at.steps}", "decode": "finishing"}[at.phase]
    return f"frame {at.frame + 1} of {at.frames}, {doing}: {story.captions[at.frame].text[:60]}"
