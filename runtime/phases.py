"""What each phase of a story takes at most, when it is drawn in a given way.

Pure arithmetic over footprints: what is loaded in which phase, what lies there beside it. Which way is taken
is the plan's choice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.manifest import Context, Variant
from storyv_lite.runtime.context_size import bytes_per_token
from storyv_lite.runtime.footprint import (
    LEFT_BEHIND,
    LIBRARY_BYTES,
    WIDE,
    Demand,
    Footprint,
    finish_bytes,
    footprint,
)

PHASES: Mapping[str, tuple[Component, ...]] = {
    "look": (Component.VISION_ENCODER,),
    "read": (
        Component.LANGUAGE_MODEL,
        Component.MAPPER,
        Component.TEXT_ENCODER,
        Component.CHARACTER_ENCODER,
        Component.FUSION,
    ),
    "draw": (Component.UNET,),
    "decode": (Component.VAE_DECODER,),
}
PHASE_OF = {"portraits": "read", "map": "read", "text": "read"}  # what the pipeline times apart
LOAD, FINISH = "load", "finish"  # before the first frame, behind the last
LOADABLE = tuple(component for components in PHASES.values() for component in components)


@dataclass(frozen=True)
class Place:
    """Where a story is to be drawn: bytes that the process holds before, and whether weights go to a GPU."""

    base_bytes: int
    on_gpu: bool = False


@dataclass(frozen=True)
class Choice:
    """Everything that a plan decides."""

    schemes: Mapping[Component, str]
    kept: tuple[Component, ...]  # stay loaded; the others are loaded for each use
    batched: bool  # guidance in one pass
    tile: int = 0
    kv_width: str = WIDE
    context: Context | None = None  # a shorter one than the model's; None leaves it
    whole: tuple[Component, ...] = ()  # of those in parts, the ones all of whose parts are there at once
    prewarm: bool = False  # what is kept is loaded before the first frame, the largest first


@dataclass(frozen=True)
class Phase:
    """The most that one phase takes, in bytes, and what is loaded in it."""

    name: str
    loaded: tuple[str, ...]  # for this phase alone; what is kept is there too
    ram_bytes: int
    vram_bytes: int


def predict(
    bundle: Bundle, demand: Demand, place: Place, choice: Choice, parts: Mapping[Component, Footprint]
) -> tuple[Phase, ...]:
    """The most that each phase takes under a choice; `parts` are those that the story uses."""
    kv_bytes = kv_cache_bytes(bundle, demand, choice)
    host = place.base_bytes + LIBRARY_BYTES + parts[Component.TOKEN_EMBEDDING].loaded
    kept = sum(parts[component].loaded for component in choice.kept)

    def phase(name: str, loaded: Sequence[Component], weights: int, passing: int = 0) -> Phase:
        """`weights` lie where the graphs run, `passing` in memory in any case."""
        names = tuple(map(str, loaded))
        if place.on_gpu:
            return Phase(name, names, host + passing, weights + kv_bytes)
        return Phase(name, names, host + weights + kv_bytes, 0)

    found = []
    if choice.prewarm:
        found.append(phase(LOAD, choice.kept, _loading(parts, choice.kept), _files(parts, choice.kept)))
    most = {}
    for name, components in PHASES.items():
        here = [component for component in components if component in parts]
        uses = (_use(parts[c], c in choice.kept) + _left_behind(parts, {*choice.kept, c}) for c in here)
        most[name] = kept + max(uses, default=0)
    if not choice.prewarm:
        # What is freed is kept for the next phase, and everything is loaded when it is first needed.
        first = _loading(parts, _first_uses(bundle, parts))
        most = dict.fromkeys(most, max(first, *most.values()))
    for name, components in PHASES.items():
        new = [c for c in components if c in parts and c not in choice.kept]
        passing = _files(parts, new if choice.prewarm else [c for c in components if c in parts])
        found.append(phase(name, new, most[name], passing))
    after = finish_bytes(bundle.model.dimensions, demand.frames)
    if place.on_gpu:
        found.append(Phase(FINISH, (), host + after, 0 if choice.prewarm else kept))
    else:  # a plan with a budget unloads everything first
        left = max(kept + after, most["draw"] + kv_bytes) - after
        left = _left_behind(parts, set()) if choice.prewarm else left
        found.append(Phase(FINISH, (), host + left + after, 0))
    return tuple(found)


def _use(part: Footprint, stays: bool) -> int:
    """The most while one component is used, on top of all that is kept."""
    if part.in_turn:  # a part is loaded while what the one before gave is there
        return part.loading + part.working - (part.loaded if stays else 0)
    return part.working if stays else max(part.loading, part.loaded + part.working)


def _left_behind(parts: Mapping[Component, Footprint], there: Collection[Component]) -> int:
    """What is not given back of components that were loaded before; `there` are those that still are."""
    gone = (
        parts[component].loading for component in LOADABLE if component in parts and component not in there
    )
    return int(LEFT_BEHIND * max(gone, default=0))


def _first_uses(bundle: Bundle, parts: Mapping[Component, Footprint]) -> list[Component]:
    """Components in the order in which a story needs them first."""
    read, draw = list(PHASES["read"]), [*PHASES["draw"], *PHASES["decode"]]
    portraits, told = read[2:], [*PHASES["look"], *read[:2]]
    order = [*portraits, *draw, *told] if bundle.model.first_frame == "char_ldm" else [*read, *draw, *told]
    return [component for component in dict.fromkeys(order) if component in parts]


def _loading(parts: Mapping[Component, Footprint], kept: Sequence[Component]) -> int:
    """The most while components are loaded in this order, and stay."""
    there = most = 0
    for part in (parts[component] for component in kept):
        most = max(most, there + part.loading)
        there += part.loaded
    return max(most, there)


def _files(parts: Mapping[Component, Footprint], loaded: Sequence[Component]) -> int:
    """The largest of what passes through memory on its way to a GPU."""
    return max((parts[component].loading for component in loaded), default=0)


def load_order(bundle: Bundle, kept: Sequence[Component]) -> tuple[Component, ...]:
    """What is kept, the largest first: its session is made while there is the most room."""
    sizes = {c: sum(part.bytes for part in variants[0].parts) for c, variants in bundle.components.items()}
    return tuple(sorted((c for c in kept if c in sizes), key=lambda c: (-sizes[c], c)))


def used_components(bundle: Bundle, demand: Demand) -> tuple[Component, ...]:
    """What the story needs at all, of what is loaded."""
    portraits = bundle.model.first_frame == "char_ldm"
    told = demand.frames > 1 or not portraits
    needed = {
        Component.VISION_ENCODER: demand.frames > 1,
        Component.LANGUAGE_MODEL: told,
        Component.MAPPER: told,
        Component.CHARACTER_ENCODER: portraits and demand.characters > 0,
        Component.FUSION: portraits and demand.characters > 0,
    }
    return tuple(component for component in LOADABLE if needed.get(component, True))


def footprints(bundle: Bundle, demand: Demand, choice: Choice) -> dict[Component, Footprint]:
    dims, variants = bundle.model.dimensions, chosen_variants(bundle, choice.schemes)
    used = (*used_components(bundle, demand), Component.TOKEN_EMBEDDING)
    return {
        c: footprint(
            c, variants[c], dims, demand, choice.batched, choice.tile, choice.kv_width, c in choice.whole
        )
        for c in used
    }


def kv_cache_bytes(bundle: Bundle, demand: Demand, choice: Choice) -> int:
    tokens = demand.tokens if Component.LANGUAGE_MODEL in used_components(bundle, demand) else 0
    return tokens * bytes_per_token(bundle.model.dimensions, choice.kv_width)


def runnable(variants: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in variants if variant.backend in ("onnx", "table")]


def chosen_variants(bundle: Bundle, schemes: Mapping[Component, str]) -> dict[Component, Variant]:
    return {
        component: next(v for v in runnable(bundle.components[component]) if v.scheme == scheme)
        for component, scheme in schemes.items()
    }
