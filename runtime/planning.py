"""From a budget and a story to a plan that a pipeline obeys; the part of planning that looks around.

Knows which bundles there are and what this process holds already; choosing is `plan`'s, doing `residency`'s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyv_lite.bundle import MANIFEST, PACKAGED, Bundle, find_bundle
from storyv_lite.components import Component
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.manifest import Context
from storyv_lite.memory import parse_bytes, resident_memory
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import Backend
from storyv_lite.runtime.context_size import WIDTHS
from storyv_lite.runtime.demand import demand_of
from storyv_lite.runtime.footprint import Demand
from storyv_lite.runtime.phases import Choice, Place
from storyv_lite.runtime.pipeline import Settings, StoryPipeline
from storyv_lite.runtime.plan import Budget, MemoryPlan, check_fits, make_plan, planned
from storyv_lite.runtime.tiles import check_tile
from storyv_lite.story import Story


def read_budget(ram: str, vram: str) -> Budget:
    """A budget as it is written on the command line, empty for none. Raises `ConfigError`."""
    return Budget(parse_bytes(ram) if ram else None, parse_bytes(vram) if vram else None)


def find_forms(names: Sequence[str | Path], limited: bool) -> tuple[list[Path], str]:
    """Bundles to choose from, and why those: the ones asked for, else the one that is taken without a budget
    and, within one (`limited`), all other forms of it.

    Forms of one model were exported from one checkpoint. Raises `BundleError`.
    """
    if names:
        return [find_bundle(name)[0] for name in names], "asked for"
    first, reason = find_bundle()
    if not limited:
        return [first], reason
    origin = _origin(first)
    beside = () if first == PACKAGED else sorted(first.parent.glob(f"*/{MANIFEST}"))
    same = [f.parent for f in beside if f.parent != first and origin and _origin(f.parent) == origin]
    return [first, *same], f"{reason}, or another form of it" if same else reason


@dataclass(frozen=True)
class Asked:
    """What a user says of a story that decides memory; None and 0 leave it to the plan."""

    guidance_scale: float | None = None
    tile: int = 0
    context_size: str | int | None = None
    kv_cache: str | None = None
    num_inference_steps: int | None = None
    spell_out: bool = False


def open_planned(
    names: Sequence[str | Path],
    story: Story,
    budget: Budget,
    asked: Asked = Asked(),  # noqa: B008  # it is frozen
    device: str = "auto",
    provider: str = "auto",
) -> StoryPipeline:
    """A pipeline that draws one story within a budget; files are verified, nothing is loaded yet.

    Raises `BudgetError` with the smallest budget that would do, `BundleError`, `BackendError`, `StoryError`
    and `ConfigError`.
    """
    check_tile(asked.tile)
    backend = open_backend(device, provider=provider)
    paths, reason = find_forms(names, budget.limited)
    found, plan = plan_story(paths, backend, story, budget, asked)
    pipeline = StoryPipeline(Bundle.open(found), backend, reason, tile=asked.tile)
    if plan is not None:
        pipeline.obey(plan)
    return pipeline


def plan_story(
    paths: Sequence[Path], backend: Backend, story: Story, budget: Budget, asked: Asked
) -> tuple[Path, MemoryPlan | None]:
    """The bundle and the plan of a story; loads nothing, and no more than manifests and tokenizers is read.

    There is no plan where engines run: what they take is not known before. Raises `BudgetError`, and
    `ConfigError` for a budget that `backend` cannot be held to.
    """
    _check_budget(budget, backend)
    pipelines = [StoryPipeline(Bundle.open(path, verify=False), backend) for path in paths]
    pipelines.sort(key=lambda pipeline: -pipeline.bundle.total_bytes)
    demands = []
    for pipeline in pipelines:
        drawing = (asked.num_inference_steps, asked.guidance_scale)
        settings = pipeline.settings(0, *drawing, asked.context_size, asked.kv_cache, asked.spell_out)
        pipeline.check(story, settings)
        limits = pipeline.limits(settings)
        demands.append(_demand(pipeline, story, settings, limits))
    if backend.name != "ort":
        return paths[0], None
    bundles = [pipeline.bundle for pipeline in pipelines]
    bundle, plan = make_plan(bundles, demands, budget, _place(backend), _widths(asked.kv_cache), asked.tile)
    return bundle.path, plan


def plan_again(
    pipeline: StoryPipeline,
    story: Story,
    settings: Settings,
    made: Mapping[str, Any] | None,
    budget: Budget = Budget(),  # noqa: B008  # it is frozen
) -> None:
    """Let a pipeline draw as it was planned when the story was begun; `made` is what `kept_plan` kept.

    A limited `budget` takes the place of the one it was begun with, and makes another plan. Raises
    `BudgetError` when the story has outgrown its budget since, `ConfigError` for one that cannot be kept.
    """
    _check_budget(budget, pipeline.backend)
    if pipeline.backend.name != "ort" or not story.captions:
        return
    limits, place = pipeline.limits(settings), _place(pipeline.backend)
    demand = _demand(pipeline, story, settings, limits)
    if made is None or budget.limited:
        widths = _widths(settings.kv_cache)
        plan = make_plan([pipeline.bundle], [demand], budget, place, widths, pipeline.tile)[1]
        pipeline.obey(plan)
        return
    chosen = dict(made["choice"])
    schemes = {Component(name): scheme for name, scheme in chosen.pop("schemes").items()}
    kept, whole = (tuple(map(Component, chosen.pop(name, ()))) for name in ("kept", "whole"))
    chosen["context"] = Context(**chosen["context"]) if chosen["context"] else None
    choice = Choice(schemes, kept, whole=whole, **chosen)
    plan = planned(pipeline.bundle, demand, Budget(**made["budget"]), place, choice)
    check_fits(plan)
    pipeline.obey(plan)


def _check_budget(budget: Budget, backend: Backend) -> None:
    if budget.vram is not None and backend.device == "cpu":
        raise ConfigError("`--vram` is for a GPU, and this story is drawn on the CPU", "give `--ram` alone")
    if budget.limited and backend.name != "ort":
        raise ConfigError(
            f"there is no plan for `{backend.provider}`", "give `--provider cpu` or `cuda` with a budget"
        )


def _widths(kv_cache: str | None) -> tuple[str, ...]:
    """Of keys and values: the one that is asked for, else any."""
    return (kv_cache,) if kv_cache else WIDTHS


def _demand(pipeline: StoryPipeline, story: Story, settings: Settings, limits: Context) -> Demand:
    guidance, steps = settings.guidance_scale, settings.num_inference_steps
    return demand_of(pipeline.model, story.captions, guidance, limits, steps, settings.spell_out)


def _place(backend: Backend) -> Place:
    return Place(resident_memory().now or 0, backend.device == "cuda")


def _origin(path: Path) -> str:
    """The checkpoint that a bundle was exported from; empty when it cannot be told."""
    try:
        return str(Bundle.open(path, verify=False).provenance.get("checkpoint_sha256", ""))
    except BundleError:
        return ""
