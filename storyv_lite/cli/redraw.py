"""`storyv-lite redraw`: single frames of a drawn story, again; in place, or in a branch beside it.

Knows options; what redrawing does to the order of takes is `takes`' business.
"""

import json
import os
import re
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.cli.drawing import draw_story, take_over, writing
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
from storyv_lite.errors import ConfigError, OutputError, StoryError
from storyv_lite.outputs import make_folder
from storyv_lite.story import Caption, parse

if TYPE_CHECKING:
    from storyv_lite.runtime.journal import Journal


def redraw(
    folder: FolderArgument,
    frame: Annotated[list[int], typer.Option("--frame", metavar="N", help="Which, from 1; may be repeated.")],
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, help="Seed of the frame [default: the next; with --caption its own]."
        ),
    ] = None,
    caption: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the frame shall show instead.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Draw all frames after it again, too.")] = False,
    branch: Annotated[
        str, typer.Option(metavar="NAME", help="Leave FOLDER as it is and write FOLDER-NAME.")
    ] = "",
    bundle: SameBundleOption = "",
    device: DeviceOption = "auto",
    provider: SameProviderOption = "",
    ram: SameRamOption = "",
    vram: SameVramOption = "",
    strict_budget: StrictBudgetOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw single frames of a drawn story again."""
    began = time.perf_counter()
    from storyv_lite.runtime.storyboard_folder import StoryboardFolder

    def changed() -> "Journal":
        journal = known_journal(folder)
        refuse_unfinished(folder, journal, resuming(folder, bundle, device, provider, False, strict_budget))
        return _changed(folder, journal, frame, seed, caption, follow)

    wanted = changed()
    pipeline = open_pipeline(wanted, bundle, device, provider, ram, vram)
    refuse_unplanned(pipeline, strict_budget)
    target = _branch(folder, branch) if branch else folder
    resume = resuming(target, bundle, device, provider, False, strict_budget)
    with ExitStack() as held:
        if branch:
            with writing(folder, resume):
                wanted = replace(changed(), branch_of=Path(os.path.abspath(folder)).name)
                _make_branch(target)
                held.enter_context(writing(target, resume))
                StoryboardFolder(target, wanted, pipeline).branch(folder)
        else:
            held.enter_context(writing(folder, resume))
            wanted = changed()  # again, now that nobody else writes
            wanted.write(folder)
        drawn = StoryboardFolder(target, wanted, pipeline)
        take_over(drawn, retry=False, resumed=False)
        draw_story(drawn, began, resume, keep_going=False, as_json=as_json, strict_budget=strict_budget)


def _changed(
    folder: Path, journal: "Journal", frames: list[int], seed: int | None, caption: str | None, follow: bool
) -> "Journal":
    """The journal with the takes that are asked for. Raises what is wrong with the wish."""
    from storyv_lite.runtime.takes import redrawn

    captions = journal.story.captions
    for number in frames:
        if not 1 <= number <= len(captions):
            raise ConfigError(
                f"there is no frame {number} in `{folder}`", f"it has frames 1 to {len(captions)}"
            )
    if caption is not None and len(set(frames)) > 1:
        raise ConfigError("one caption is for one frame", "give `--frame` once")
    text = "" if caption is None else _sentence(caption)
    changes = {}
    for place in (number - 1 for number in frames):
        own = captions[place].seed
        following = (journal.settings["seed"] if own is None else own) + 1
        new = own if text and seed is None else following if seed is None else seed
        changes[place] = Caption(text or captions[place].text, new)
    return journal.retold(redrawn(journal.story.order, changes, follow))


def _sentence(caption: str) -> str:
    try:
        return parse(json.dumps([caption]), "`--caption`", ".json").captions[0].text
    except StoryError as fault:
        raise StoryError(fault.message, 'write it like `--caption "Luna is waving."`') from fault


def _make_branch(target: Path) -> None:
    try:
        make_folder(target, force=False)
    except OutputError as taken:
        raise OutputError(taken.message, "give the branch another name with `--branch`") from taken


def _branch(folder: Path, name: str) -> Path:
    """The folder of a branch, beside the one it comes from."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"`{name}` is no name for a branch", "use letters, digits, `-`, `_` and `.`")
    place = folder if folder.name else Path(os.path.abspath(folder))
    return place.with_name(f"{place.name}-{name}")
