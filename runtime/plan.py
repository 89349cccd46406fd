"""The memory plan of one story: what is stored how, what is loaded when, and how much that takes at most.

Pure: reads sizes, loads nothing. A plan is a promise that is made before anything is loaded. What costs no
fidelity is given up first (seconds: what stays loaded, guidance in one pass), then tiles, the width of keys
and values, the width of weights, and last the length of the context.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.errors import BudgetError
from storyv_lite.manifest import Context, Variant
from storyv_lite.memory import format_bytes
from storyv_lite.runtime.context import REDUCED
from storyv_lite.runtime.context_size import WIDTHS
from storyv_lite.runtime.footprint import WIDE, Demand
from storyv_lite.runtime.phases import (
    LOADABLE,
    Choice,
    Phase,
    Place,
    chosen_variants,
    footprints,
    kv_cache_bytes,
    load_order,
    predict,
    runnable,
    used_components,
)

SMALLEST_TILE = 12  # cells; below it a tile of the default model is no longer within 45 dB
CONTEXT_PARTS = (1.0, 0.75, 0.5, 0.25)
KEPT, WHOLE, APART = "kept", "whole", "apart"  # how a component may be there, see `_quickest`


@dataclass(frozen=True)
class Budget:
    """What may be used, in bytes; None is as much as there is."""

    ram: int | None = None
    vram: int | None = None

    @property
    def limited(self) -> bool:
        return self.ram is not None or self.vram is not None


@dataclass(frozen=True)
class MemoryPlan:
    """What a story is drawn with, phase by phase, and what it costs."""

    bundle: str
    choice: Choice
    demand: Demand
    budget: Budget
    place: Place
    phases: tuple[Phase, ...]
    kv_bytes: int
    load_seconds_per_frame: float  # what unloading costs; seconds of the machine it was measured on

    @property
    def ram_bytes(self) -> int:
        """The most that the process takes at any time."""
        return max(phase.ram_bytes for phase in self.phases)

    @property
    def vram_bytes(self) -> int:
        return max(phase.vram_bytes for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON; sizes in bytes."""
        return {**asdict(self), "ram_bytes": self.ram_bytes, "vram_bytes": self.vram_bytes}


def make_plan(
    bundles: Sequence[Bundle],
    demands: Sequence[Demand],
    budget: Budget,
    place: Place,
    kv_widths: Sequence[str] = WIDTHS,
    tile: int = 0,
) -> tuple[Bundle, MemoryPlan]:
    """The bundle and the plan that change pictures least, then take fewest seconds, of all that fit.

    `bundles` are forms of one model, wide to narrow, `demands` what the story asks of each. `kv_widths` are
    those of keys and values to choose from; a `tile` that was asked for is taken. Raises `BudgetError` with
    the smallest budget that would do.
    """
    least: list[MemoryPlan] = []
    for part, (bundle, demand) in product(CONTEXT_PARTS, zip(bundles, demands, strict=True)):
        for choice in _choices(bundle, demand, part, kv_widths, tile):
            if not budget.limited:
                return bundle, planned(bundle, demand, budget, place, replace(choice, kept=LOADABLE))
            smallest = planned(bundle, demand, budget, place, replace(choice, batched=False))
            if _fits(smallest.phases, budget):
                return bundle, _quickest(bundle, smallest)
            least.append(smallest)
    raise _refusal(min(least, key=lambda plan: (plan.vram_bytes, plan.ram_bytes)))


def check_fits(plan: MemoryPlan) -> None:
    """Raise `BudgetError` for a plan that is larger than its budget."""
    if not _fits(plan.phases, plan.budget):
        raise _refusal(plan)


def kept_plan(plan: MemoryPlan) -> dict[str, Any]:
    """What of a plan is needed to draw in the same way again."""
    whole = plan.as_dict()
    return {name: whole[name] for name in ("choice", "budget")}


def ways(plan: MemoryPlan, bundle: Bundle) -> dict[str, Any]:
    """What of a plan the bytes of pictures may depend on, tiles apart, by name; only what is not as usual."""
    choice = plan.choice
    found: dict[str, Any] = {} if choice.batched else {"guidance passes": 2}
    found |= {"context": asdict(choice.context)} if choice.context else {}
    found |= {"keys and values": choice.kv_width} if choice.kv_width != WIDE else {}
    several = {c for c, variants in bundle.components.items() if len(runnable(variants)) > 1}
    return found | {str(c): scheme for c, scheme in choice.schemes.items() if c in several}


def narrowed(bundle: Bundle, choice: Choice) -> Bundle:
    """The bundle as a plan uses it: the chosen form of each component first, the chosen context."""
    chosen = chosen_variants(bundle, choice.schemes)
    components = {
        component: (chosen[component], *(v for v in variants if v is not chosen[component]))
        if component in chosen
        else variants
        for component, variants in bundle.components.items()
    }
    model = replace(bundle.model, context=choice.context) if choice.context else bundle.model
    return replace(bundle, components=components, model=model)


def _quickest(bundle: Bundle, smallest: MemoryPlan) -> MemoryPlan:
    """Of all ways to keep components loaded and to guide, the one that costs the fewest seconds.

    Where seconds are equal, guidance in one pass, which is a little faster, then what keeps most for a next
    story. A component in parts is kept as a whole, or is there as a whole while it is used where that saves
    loading them in every call, or part by part.
    """
    demand, used = smallest.demand, used_components(bundle, smallest.demand)
    recurring = [component for component in used if component in _recurring(bundle)]
    once = [component for component in used if component not in recurring]
    order, found = load_order(bundle, used), []
    sizes = {
        batched: [
            footprints(bundle, demand, replace(smallest.choice, batched=batched, whole=whole))
            for whole in ((), used)
        ]
        for batched in (True, False)
    }
    for batched, (apart, together) in sizes.items():
        saves = {c for c in recurring if together[c].load_seconds < apart[c].load_seconds}
        states = [(KEPT, WHOLE, APART) if c in saves else (KEPT, APART) for c in recurring]
        for chosen in product(*states, (KEPT, APART)):
            by = dict(zip(recurring, chosen, strict=False)) | dict.fromkeys(once, chosen[-1])
            parts = {c: apart[c] if by.get(c) == APART else together[c] for c in apart}
            seconds = sum(parts[c].load_seconds for c in recurring if by[c] != KEPT)
            kept = tuple(component for component in order if by[component] == KEPT)
            whole = tuple(c for c in used if by[c] != APART and apart[c].in_turn)
            found.append((seconds, not batched, -len(kept), kept, whole, parts))
    for _, two_passes, _, kept, whole, parts in sorted(found, key=lambda way: way[:5]):
        choice = replace(smallest.choice, kept=kept, batched=not two_passes, whole=whole)
        if _fits(predict(bundle, demand, smallest.place, choice, parts), smallest.budget):
            return planned(bundle, demand, smallest.budget, smallest.place, choice)
    return smallest


def _recurring(bundle: Bundle) -> set[Component]:
    """Components that more than the first frame uses."""
    found: set[Component] = {c for c in LOADABLE if c not in (Component.CHARACTER_ENCODER, Component.FUSION)}
    merge = bundle.model.merge_step
    return found if max(merge.named, merge.reference) >= 0 else found - {Component.TEXT_ENCODER}


def planned(bundle: Bundle, demand: Demand, budget: Budget, place: Place, choice: Choice) -> MemoryPlan:
    """What a choice that is made already takes."""
    tokens = min(demand.tokens, choice.context.tokens) if choice.context else demand.tokens
    longest = demand.longest_read
    if tokens < demand.tokens:  # a reduced context is read anew in one call
        longest = max(longest, int(REDUCED * tokens))
    demand = replace(demand, tokens=tokens, longest_read=min(longest, tokens))
    parts = footprints(bundle, demand, choice)
    kept = load_order(bundle, [component for component in choice.kept if component in parts])
    choice = replace(choice, prewarm=budget.limited, kept=kept)
    phases = predict(bundle, demand, place, choice, parts)
    again = [c for c in _recurring(bundle) & parts.keys() if c not in kept or parts[c].in_turn]
    seconds = round(sum(parts[component].load_seconds for component in again), 3)
    kv_bytes = kv_cache_bytes(bundle, demand, choice)
    return MemoryPlan(bundle.name, choice, demand, budget, place, phases, kv_bytes, seconds)


def _choices(
    bundle: Bundle, demand: Demand, part: float, kv_widths: Sequence[str], tile: int
) -> Iterator[Choice]:
    """What may be given up at the cost of fidelity, the least first, with a part of the context."""
    size, limits = bundle.model.dimensions.latent_size, bundle.model.context
    tiles = [tile] if tile else [0, *(t for t in (size * 3 // 4, size // 2) if SMALLEST_TILE <= t < size)]
    context = None
    if part < 1:
        context = Context(int(part * demand.tokens), max(2, int(part * limits.frames)))
        if context.tokens < 2 * demand.longest_read:
            return  # a query and what it is read behind need some room
    for schemes, width, one in product(_schemes(bundle), kv_widths, tiles):
        yield Choice(schemes, (), batched=True, tile=one, kv_width=width, context=context)


def _schemes(bundle: Bundle) -> Iterator[Mapping[Component, str]]:
    """From the widest form of every component to the narrowest; each step saves the most bytes it can."""
    forms = {
        c: sorted(runnable(variants), key=_bytes, reverse=True) for c, variants in bundle.components.items()
    }
    forms = {component: variants for component, variants in forms.items() if variants}
    taken = dict.fromkeys(forms, 0)
    while True:
        yield {component: forms[component][place].scheme for component, place in taken.items()}
        saved = {
            c: _bytes(forms[c][place]) - _bytes(forms[c][place + 1])
            for c, place in taken.items()
            if place + 1 < len(forms[c])
        }
        if not saved:
            return
        taken[max(saved, key=lambda component: saved[component])] += 1


def _bytes(variant: Variant) -> int:
    return sum(part.bytes for part in variant.parts)


def _fits(phases: Sequence[Phase], budget: Budget) -> bool:
    ram = budget.ram is None or max(phase.ram_bytes for phase in phases) <= budget.ram
    return ram and (budget.vram is None or max(phase.vram_bytes for phase in phases) <= budget.vram)


def _refusal(smallest: MemoryPlan) -> BudgetError:
    budget, frames = smallest.budget, smallest.demand.frames
    kinds = (("--ram", smallest.ram_bytes, budget.ram), ("--vram", smallest.vram_bytes, budget.vram))
    short = [(flag, needed, given) for flag, needed, given in kinds if given is not None and needed > given]
    told = (
        f"{format_bytes(needed)}, and `{flag}` gives {format_bytes(given)}" for flag, needed, given in short
    )
    # a little more: the next process may hold some pages more before it begins
    flags = " ".join(f"{flag} {-(-needed // 2**20) + 2}MiB" for flag, needed, _ in short)
    story = "1 frame" if frames == 1 else f"{frames} frames"
    return BudgetError(
        f"a story of {story} drawn with `{smallest.bundle}` needs at least {', '.join(told)}",
        hint=f"give `{flags}`, tell a shorter story, or export narrower weights: storyv-lite export --int4",
    )
