"""A drawn story taken up again: its journal, and the bundle, the provider and the budget it was begun with.

Knows options and what else may be asked for; what is drawn then is `drawing`'s business.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.errors import BackendError, BundleError, ConfigError, OutputError
from storyv_lite.memory import take_peak

if TYPE_CHECKING:
    from storyv_lite.runtime.backends.base import Backend
    from storyv_lite.runtime.journal import Journal
    from storyv_lite.runtime.pipeline import StoryPipeline

SameBundleOption = Annotated[
    str,
    typer.Option(
        "--bundle", metavar="BUNDLE", help="Bundle or checkpoint [default: the one it was begun with]."
    ),
]
SameProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="PROVIDER",
        help="auto, cpu, cuda, tensorrt or tensorrt-rtx [default: the one it was begun with].",
    ),
]
SameRamOption = Annotated[
    str,
    typer.Option("--ram", metavar="SIZE", help="Memory that may be used [default: as it was begun with]."),
]
SameVramOption = Annotated[
    str,
    typer.Option(
        "--vram", metavar="SIZE", help="GPU memory that may be used [default: as it was begun with]."
    ),
]
FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a drawn story.")]


def known_journal(folder: Path) -> "Journal":
    """The journal of a drawn story. Raises `OutputError` when there is none."""
    from storyv_lite.runtime.journal import read_journal

    journal = read_journal(folder) if folder.is_dir() else None
    if journal is None:
        raise OutputError(
            f"`{folder}` holds no story that `storyv-lite render` has drawn",
            f"storyv-lite render STORY -o {shlex.quote(str(folder))}",
        )
    return journal


def refuse_unfinished(folder: Path, journal: "Journal", resume: str) -> None:
    """Raise `OutputError` while there is something left to draw; `resume` is the command that draws it."""
    if journal.pending:
        raise OutputError(
            f"the story in `{folder}` is not finished: {len(journal.pending)} of its frames are to be drawn",
            resume,
        )


def open_pipeline(
    journal: "Journal", bundle: str, device: str, provider: str, ram: str = "", vram: str = ""
) -> "StoryPipeline":
    """The bundle or checkpoint that a story was begun with, on the provider that it was begun with unless
    another one is asked for, planned as it was unless another budget is given.

    Raises `BundleError` when it is not found, `BackendError` when that provider does not work, `BudgetError`,
    `ConfigError` for a `provider` or a budget and a checkpoint, `StoryError` for a story that does not fit.
    """
    from storyv_lite.bundle import MANIFEST, Bundle, find_bundle, hash_file
    from storyv_lite.runtime.pipeline import Settings, StoryPipeline
    from storyv_lite.runtime.planning import plan_again, read_budget

    budget, settings = read_budget(ram, vram), Settings(**journal.settings)
    name, wanted = journal.bundle["name"], journal.bundle["sha256"]
    tile = journal.made_with.get("tile", 0)
    if precision := journal.bundle.get("precision"):
        refuse_provider(provider)
        refuse_budget(budget.limited)
        pipeline = StoryPipeline.from_checkpoint(bundle or name, device, precision, tile=tile)
        if pipeline.bundle.sha256 == wanted:
            pipeline.check(journal.story, settings)
            return pipeline
        raise BundleError(
            f"the story was begun with checkpoint `{name}` ({wanted[:12]}); "
            f"found `{pipeline.bundle.path}` ({pipeline.bundle.sha256[:12]})",
            "name its folder with `--bundle`",
        )
    found = []
    for place in [bundle] if bundle else [None, name]:
        try:
            path, _ = find_bundle(place)
        except BundleError:
            if bundle:
                raise
            continue
        digest = hash_file(path / MANIFEST)
        if digest == wanted:
            backend = _open_again(journal.made_with["provider"], device, provider)
            pipeline = StoryPipeline(Bundle.open(path), backend, tile=tile)
            plan_again(pipeline, journal.story, settings, journal.made_with.get("plan"), budget)
            pipeline.check(journal.story, settings)
            return pipeline
        found.append(f"`{path}` ({digest[:12]})")
    raise BundleError(
        f"the story was begun with bundle `{name}` ({wanted[:12]}); found {', '.join(found) or 'none'}",
        "name its folder with `--bundle`",
    )


def _open_again(made_with: str, device: str, provider: str) -> "Backend":
    """The provider that is asked for, else the one that a story was drawn with, else what `device` gives."""
    from storyv_lite.runtime.backends import open_backend, provider_asked

    if provider:
        return open_backend(device, provider=provider)
    same = provider_asked(made_with, device)
    try:
        return open_backend(device, provider=same)
    except BackendError as fault:
        if same == "auto":
            raise
        raise BackendError(
            f"the story was drawn with `{same}`, which does not work here: {fault.message}",
            "go on with another provider, such as `--provider cpu`: bytes may differ then",
        ) from fault


def refuse_budget(asked: bool) -> None:
    """Raise `ConfigError` when a budget is given to draw with a checkpoint."""
    if asked:
        raise ConfigError(
            "a memory plan is for a bundle; a checkpoint is drawn with by PyTorch",
            hint="export it first: storyv-lite export --int4",
        )


def refuse_unplanned(pipeline: "StoryPipeline", strict_budget: bool) -> None:
    """Raise `ConfigError` where memory is to be held to a plan, and there is none."""
    if strict_budget and pipeline.plan is None:
        raise ConfigError(
            f"there is no plan for `{pipeline.backend.provider}`, which `--strict-budget` could hold it to",
            "leave `--strict-budget` out",
        )
    if strict_budget and (take_peak() is None or (pipeline.plan and pipeline.plan.budget.vram)):
        raise ConfigError(
            "`--strict-budget` holds main memory alone to the plan, where Linux says what a phase took",
            "leave `--strict-budget` out, and `--vram` where both are given",
        )


def refuse_provider(provider: str) -> None:
    """Raise `ConfigError` when one is asked for to draw with a checkpoint."""
    if provider not in ("", "auto"):
        raise ConfigError(
            "`--provider` is for a bundle; a checkpoint is drawn with by PyTorch",
            hint="give `--device cpu` or `--device cuda`",
        )


def resuming(
    folder: Path, bundle: str, device: str, provider: str, keep_going: bool, strict_budget: bool
) -> str:
    """The command that goes on with what is in `folder`."""
    words = ["storyv-lite", "continue", str(folder)]
    words += ["--bundle", bundle] if bundle else []
    for option, asked in (("--device", device), ("--provider", provider)):
        words += [option, asked] if asked not in ("", "auto") else []
    words += ["--strict-budget"] if strict_budget else []
    return shlex.join([*words, "--keep-going"] if keep_going else words)
