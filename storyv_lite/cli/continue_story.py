"""`storyv-lite continue`: more sentences for a finished story, or the rest of an unfinished one.

Knows options; the bytes are those of one story with all sentences.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.cli.console import note
from storyv_lite.cli.drawing import (
    KeepGoingOption,
    draw_story,
    say_complete,
    take_over,
    writing,
)
from storyv_lite.cli.options import DeviceOption, JsonOption, StrictBudgetOption
from storyv_lite.cli.reopening import (
    FolderArgument,
    SameBundleOption,
    SameProviderOption,
    SameRamOption,
    SameVramOption,
    known_journal,
    open_pipeline,
    refuse_unfinished,
    refuse_unplanned,
    resuming,
)
from storyv_lite.story import Story, read_story

if TYPE_CHECKING:
    from storyv_lite.runtime.journal import Journal


def continue_story(
    folder: FolderArgument,
    more: Annotated[
        str, typer.Argument(metavar="MORE", help="Story file with what comes next; none to finish FOLDER.")
    ] = "",
    bundle: SameBundleOption = "",
    device: DeviceOption = "auto",
    provider: SameProviderOption = "",
    ram: SameRamOption = "",
    vram: SameVramOption = "",
    strict_budget: StrictBudgetOption = False,
    keep_going: KeepGoingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Append sentences to a drawn story, or finish one that was stopped."""
    began = time.perf_counter()
    from storyv_lite.runtime.storyboard_folder import StoryboardFolder

    told = read_story(more) if more else Story(())
    if told.title:
        note(f"note: the title `{told.title}` is not used; the story has one")
    resume = resuming(folder, bundle, device, provider, keep_going, strict_budget)
    wanted = _longer(folder, told, resume)
    pipeline = open_pipeline(wanted, bundle, device, provider, ram, vram)
    refuse_unplanned(pipeline, strict_budget)
    with writing(folder, resume):
        wanted = _longer(folder, told, resume)  # again, now that nobody else writes
        if told.captions:
            wanted.write(folder)  # from here on it is the longer story
        drawn = StoryboardFolder(folder, wanted, pipeline)
        more_is_told = bool(told.captions)
        take_over(drawn, retry=not (keep_going or more_is_told), resumed=not more_is_told)
        if drawn.complete:
            say_complete(drawn, as_json)
            return
        draw_story(drawn, began, resume, keep_going, as_json, strict_budget)


def _longer(folder: Path, told: Story, resume: str) -> "Journal":
    """The journal of `folder` with what is told appended. Raises `OutputError` for one that is unfinished."""
    from storyv_lite.runtime.takes import extended

    journal = known_journal(folder)
    if not told.captions:
        return journal
    refuse_unfinished(folder, journal, resume)
    return journal.retold(extended(journal.story.order, told.captions))
