"""`storyv-lite render`: a story becomes pictures, a storyboard, a page and a receipt.

Knows options and where to draw; what is said while drawing is `drawing`'s business.
"""

import glob
import shlex
import time
from dataclasses import asdict, replace
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
from storyv_lite.cli.options import (
    BundleOption,
    ContextSizeOption,
    DeviceOption,
    ForceOption,
    GuidanceOption,
    JsonOption,
    KvCacheOption,
    ProviderOption,
    RamOption,
    SpellOutOption,
    StepsOption,
    StrictBudgetOption,
    VramOption,
)
from storyv_lite.cli.reopening import (
    open_pipeline,
    refuse_budget,
    refuse_provider,
    refuse_unplanned,
    resuming,
)
from storyv_lite.errors import BudgetError, ConfigError, OutputError
from storyv_lite.outputs import free_folder, holds_something, make_folder
from storyv_lite.story import read_story

if TYPE_CHECKING:
    from storyv_lite.runtime.journal import Journal
    from storyv_lite.runtime.plan import Budget


def render(
    story: Annotated[
        str, typer.Argument(metavar="STORY", help="A .txt, .json or .jsonl file, or - for standard input.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Folder to write [default: STORY-storyboard]."),
    ] = None,
    bundle: BundleOption = "",
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT", help="Draw with a checkpoint as it is, by PyTorch, not with a bundle."
        ),
    ] = "",
    precision: Annotated[
        str,
        typer.Option(
            metavar="WORD",
            help="Of a checkpoint: fp32, bf16, fp16, int8 or nf4 [default: fp32 on the CPU, fp16 on CUDA].",
        ),
    ] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="Another number draws the story another way.")] = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    context_size: ContextSizeOption = "",
    kv_cache: KvCacheOption = "",
    spell_out: SpellOutOption = False,
    device: DeviceOption = "auto",
    provider: ProviderOption = "auto",
    tile: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            help="Decode pictures in tiles of N cells of latents: less memory, faint seams [default: whole].",
        ),
    ] = 0,
    ram: RamOption = "",
    vram: VramOption = "",
    strict_budget: StrictBudgetOption = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where it stopped, in its newest unfinished folder or that of -o."
        ),
    ] = False,
    keep_going: KeepGoingOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a story."""
    if bundle and checkpoint:
        raise ConfigError("`--bundle` and `--checkpoint` exclude each other", hint="give one of them")
    if precision and not checkpoint:
        raise ConfigError(
            "`--precision` is for a checkpoint; a bundle has the one it was exported in",
            hint="give `--checkpoint` too, or export another bundle with `storyv-lite export --scheme`",
        )
    if checkpoint:
        refuse_budget(bool(ram or vram or strict_budget))
        refuse_provider(provider)
    began = time.perf_counter()
    told = read_story(story)
    stem = "story" if story == "-" else Path(story).stem
    title = told.title or stem.replace("-", " ").replace("_", " ").capitalize()

    if resume and force:
        raise ConfigError("`--resume` keeps what is there, `--force` does not", "give one of them")

    from storyv_lite.runtime.journal import read_journal
    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.runtime.planning import Asked, open_planned, read_budget
    from storyv_lite.runtime.storyboard_folder import StoryboardFolder, new_journal

    if checkpoint:
        pipeline = StoryPipeline.from_checkpoint(checkpoint, device, precision or None, tile=tile)
        note(f"checkpoint: {pipeline.bundle.path} in {pipeline.backend.precision}")
    else:
        budget = read_budget(ram, vram)
        asked = Asked(guidance, tile, context_size or None, kv_cache or None, steps, spell_out)
        pipeline = open_planned([bundle] if bundle else [], told, budget, asked, device, provider)
        note(f"bundle: {pipeline.bundle.path} ({pipeline.reason})")
    refuse_unplanned(pipeline, strict_budget)
    backend = pipeline.backend
    note(f"device: {backend.device}, {backend.provider} ({backend.reason})")
    settings = pipeline.settings(seed, steps, guidance, context_size or None, kv_cache or None, spell_out)
    pipeline.check(told, settings)
    wanted = new_journal(told, title, pipeline, settings)
    folder = out or (resume and _unfinished(stem, wanted)) or free_folder(stem, Path())
    make_folder(folder, force or resume)
    resume_command = resuming(folder, bundle or checkpoint, device, provider, keep_going, strict_budget)
    with writing(folder, resume_command):
        make_folder(folder, force or resume)  # again: another process may have drawn here meanwhile
        begun = read_journal(folder) if resume else None
        if resume and begun is None and holds_something(folder):
            raise OutputError(f"`{folder}` is not empty and holds no story", "name another folder with `-o`")
        drawn = StoryboardFolder(folder, begun or wanted, pipeline)
        if begun is None:
            drawn.begin()
        else:
            if not kv_cache:  # what a plan chooses is no wish
                wanted = replace(wanted, settings={**wanted.settings, "kv_cache": None})
            _refuse_other(folder, begun, wanted, resume_command)
            if pipeline.plan is not None and _planned_so(begun, pipeline.plan.budget, tile):
                try:
                    drawn.pipeline = open_pipeline(begun, bundle, device, provider)
                except BudgetError:
                    if not pipeline.plan.budget.limited:  # the story's own budget is kept or refused
                        raise
            take_over(drawn, retry=not keep_going, resumed=True)
            if drawn.complete:
                say_complete(drawn, as_json)
                return
        after = f", or draw it another way with --seed {seed + 1}"
        draw_story(drawn, began, resume_command, keep_going, as_json, strict_budget, after)


def _unfinished(stem: str, wanted: "Journal") -> Path | None:
    """The folder in which this story was being drawn last, if it is not finished; says which."""
    from storyv_lite.runtime.journal import JOURNAL, read_journal

    files = [file for file in Path().glob(f"{glob.escape(stem)}-storyboard*/{JOURNAL}") if file.is_file()]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        try:
            begun = read_journal(file.parent)
        except OutputError as fault:
            note(f"passed over: {fault.message}")
            continue
        if begun is not None and begun.story == wanted.story:
            note(f"folder: {file.parent} (the newest unfinished one of this story)")
            return file.parent
    return None


def _planned_so(begun: "Journal", budget: "Budget", tile: int) -> bool:
    """Whether nothing is asked for beside the budget and the tiles that a story was begun with."""
    plan = begun.made_with.get("plan")
    same = plan is not None and (not budget.limited or asdict(budget) == plan["budget"])
    return same and tile in (0, begun.made_with.get("tile", 0))


def _refuse_other(folder: Path, begun: "Journal", wanted: "Journal", resume: str) -> None:
    differences = begun.differences(wanted)
    if differences:
        same = begun.bundle["sha256"] == wanted.bundle["sha256"]
        command = resume if same else shlex.join(["storyv-lite", "continue", str(folder)])
        raise OutputError(
            f"`{folder}` was begun otherwise: {'; '.join(differences)}",
            f"go on as it was begun: {command}; or name another folder with `-o`",
        )
