"""`storyv-lite plan`: what drawing a story takes, phase by phase, before anything is loaded.

Knows options and the table; what is planned is `runtime.plan`'s business.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.cli.console import note, say, say_json
from storyv_lite.cli.options import (
    ContextSizeOption,
    DeviceOption,
    GuidanceOption,
    JsonOption,
    KvCacheOption,
    ProviderOption,
    RamOption,
    SpellOutOption,
    StepsOption,
    VramOption,
)
from storyv_lite.errors import ConfigError
from storyv_lite.memory import format_bytes
from storyv_lite.story import Caption, Story, read_story

if TYPE_CHECKING:
    from storyv_lite.runtime.plan import MemoryPlan

SENTENCES = ("Milo is standing in the meadow with a cake.", "She is holding a balloon.")


def plan(
    story: Annotated[
        str, typer.Argument(metavar="STORY", help="Story to plan for [default: sentences of usual length].")
    ] = "",
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BUNDLE",
            help="Bundle to choose from; may be repeated [default: all forms of the one `render` takes].",
        ),
    ] = None,
    ram: RamOption = "",
    vram: VramOption = "",
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Without a story: how many frames [default: 5]."),
    ] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    tile: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            help="Decode in tiles of N cells [default: where it is needed].",
        ),
    ] = 0,
    context_size: ContextSizeOption = "",
    kv_cache: KvCacheOption = "",
    spell_out: SpellOutOption = False,
    device: DeviceOption = "auto",
    provider: ProviderOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show what drawing a story takes, without loading anything."""
    if story and frames:
        raise ConfigError("a story has its own number of frames", "give `--frames` without one")
    from storyv_lite.runtime import storyboard_folder  # noqa: F401  # this process shall be as large as `render`
    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.planning import Asked, find_forms, plan_story, read_budget
    from storyv_lite.runtime.tiles import check_tile

    told = read_story(story) if story else _usual(frames or 5)
    budget = read_budget(ram, vram)
    check_tile(tile)
    asked = Asked(guidance, tile, context_size or None, kv_cache or None, steps, spell_out)
    paths, reason = find_forms(bundle or (), budget.limited)
    backend = open_backend(device, provider=provider)
    path, found = plan_story(paths, backend, told, budget, asked)
    if found is None:
        raise ConfigError(
            f"there is no plan for `{backend.provider}`", "give `--provider cpu` or `--provider cuda`"
        )
    note(f"bundle: {path} ({reason})")
    for line in table(found):
        say(line)
    if as_json:
        say_json({"path": str(path), **found.as_dict()})


def table(plan: "MemoryPlan") -> list[str]:
    """The plan for people: one line per phase, then what was decided and what it costs."""
    choice, on_gpu = plan.choice, plan.place.on_gpu
    rows = [("phase", "memory", *(("GPU memory",) if on_gpu else ()), "loaded for it alone")]
    for phase in plan.phases:
        sizes = [phase.ram_bytes, *([phase.vram_bytes] if on_gpu else [])]
        rows.append((phase.name, *map(format_bytes, sizes), ", ".join(phase.loaded) or "-"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:], strict=True))]
        )
        + f"  {row[-1]}"
        for row in rows
    ]
    forms = ", ".join(f"{component} {scheme}" for component, scheme in choice.schemes.items())
    demand = plan.demand
    context = f"{demand.tokens} tokens in {choice.kv_width}, {format_bytes(plan.kv_bytes)}"
    passing = [component for component in choice.whole if component not in choice.kept]
    guidance = "in one pass" if choice.batched else "in two passes"
    return [
        *lines,
        f"most: {format_bytes(plan.ram_bytes)}"
        + (f", on the GPU {format_bytes(plan.vram_bytes)}" if on_gpu else "")
        + f"; the process holds {format_bytes(plan.place.base_bytes)} before",
        f"weights: {forms}",
        f"stays loaded: {', '.join(choice.kept) or 'nothing'}",
        *([f"all parts at once while it is used: {', '.join(passing)}"] if passing else []),
        f"context: {context}" + (" (shortened)" if choice.context else ""),
        f"guidance: {guidance if demand.guided else 'none'}; "
        f"decoding: {f'tiles of {choice.tile} cells' if choice.tile else 'whole'}",
        f"price: about {plan.load_seconds_per_frame:.2f} s of loading per frame",
    ]


def _usual(frames: int) -> Story:
    """Sentences as people write them, somebody named in the first."""
    return Story(tuple(Caption(SENTENCES[min(index, 1)]) for index in range(frames)))
