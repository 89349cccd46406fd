"""The memory plan: never below what is used, refused with what would do, given up in the right order."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.components import Component
from storyv_lite.errors import BudgetError
from storyv_lite.manifest import Part, Variant
from storyv_lite.memory import parse_bytes
from storyv_lite.runtime.footprint import Demand, finish_bytes, footprint
from storyv_lite.runtime.phases import FINISH, LOAD, Choice, Place, footprints, used_components
from storyv_lite.runtime.plan import Budget, MemoryPlan, make_plan, narrowed, ways
from storyv_lite.runtime.residency import Residency

MIB = 2**20
SCHEMES = ("fp32", "fp16", "int8", "int8-weights", "int4-block32", "mixed")
DEMAND = Demand(frames=5, tokens=240, longest_read=90, characters=2, guided=True)
PLACE = Place(80 * MIB)


class Ledger:
    """A fake allocator: what lies in memory and on the GPU, and the most of it per phase."""

    def __init__(self, plan: MemoryPlan, bundle: Bundle) -> None:
        self.parts = footprints(bundle, plan.demand, plan.choice)
        self.graphs = {
            c: self.of_graphs(bundle.variant(c), c, plan, bundle)
            for c in used_components(bundle, plan.demand)
        }
        self.on_gpu = plan.place.on_gpu
        self.ram, self.vram, self.phase = plan.place.base_bytes, 0, LOAD
        self.most: dict[str, tuple[int, int]] = {}

    @staticmethod
    def of_graphs(
        variant: Variant, component: Component, plan: MemoryPlan, bundle: Bundle
    ) -> list[tuple[int, int]]:
        """What each part of a component takes by itself: while it is loaded, and then."""
        alone = (replace(variant, parts=(part,)) for part in variant.parts)
        dims = bundle.model.dimensions
        found = [footprint(component, one, dims, plan.demand) for one in alone]
        return [(one.loading, one.loaded) for one in found]

    def take(self, size: int, passing: int = 0) -> None:
        """`size` stays where weights lie; `passing` goes through memory in any case."""
        self.vram, self.ram = (self.vram + size, self.ram) if self.on_gpu else (self.vram, self.ram + size)
        ram, vram = self.most.get(self.phase, (0, 0))
        self.most[self.phase] = (max(ram, self.ram + passing), max(vram, self.vram))

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        self.phase = phase
        yield


class Fake:
    """A backend and every session of it, whose work is taking and giving back memory."""

    def __init__(self, ledger: Ledger, component: Component | None = None, in_turn: bool = False) -> None:
        self.ledger = ledger
        self.component = component
        self.in_turn = in_turn

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> "Fake":
        graphs = self.ledger.graphs[component]
        in_turn = len(graphs) > 1 and not whole
        for loading, loaded in () if in_turn else graphs:
            self.load(loading, loaded)
        return Fake(self.ledger, component, in_turn)

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> "Fake":
        return self.open(bundle, Component.LANGUAGE_MODEL, whole)

    def load(self, loading: int, loaded: int) -> None:
        self.ledger.take(loading, loading if self.ledger.on_gpu else 0)
        self.ledger.take(loaded - loading)

    def run(self, inputs: object) -> None:
        assert self.component is not None
        working = self.ledger.parts[self.component].working
        self.ledger.take(working)
        for loading, loaded in self.ledger.graphs[self.component] if self.in_turn else ():
            self.load(loading, loaded)  # beside what the part before gave
            self.ledger.take(-loaded)
        self.ledger.take(-working)

    def new_cache(self, capacity: int) -> None:
        self.ledger.take(capacity)

    def read(self, inputs_embeds: object, storage: object, past_length: int) -> None:
        self.run({})

    def close(self) -> None:
        assert self.component is not None
        graphs = () if self.in_turn else self.ledger.graphs[self.component]
        self.ledger.take(-sum(loaded for _, loaded in graphs))


def tell(plan: MemoryPlan, bundle: Bundle) -> Ledger:
    """Load, use and unload as a story does."""
    ledger = Ledger(plan, bundle)
    kept = plan.choice.kept if plan.budget.limited else None
    residency = Residency(bundle, Fake(ledger), kept, plan.choice.whole)  # type: ignore[arg-type]
    used = used_components(bundle, plan.demand)

    def use(*components: Component) -> None:
        for component in components:
            if component in used:
                with residency.use(component) as session:
                    session.run({})

    if plan.choice.prewarm:
        with ledger.during(LOAD):
            residency.prewarm()
    language = None
    for frame in range(min(plan.demand.frames, 3)):
        told = frame > 0 or bundle.model.first_frame == "language_model"
        if frame > 0:
            with ledger.during("look"):
                use(Component.VISION_ENCODER)
        with ledger.during("read"):
            if told:
                if language is None:
                    language = residency.language_session()
                    language.new_cache(plan.kv_bytes)
                language.read(None, None, 0)  # type: ignore[arg-type]
                use(Component.MAPPER)
            else:
                use(Component.TEXT_ENCODER, Component.CHARACTER_ENCODER, Component.FUSION)
            use(Component.TEXT_ENCODER)
        with ledger.during("draw"):
            use(Component.UNET)
        with ledger.during("decode"):
            use(Component.VAE_DECODER)
    ledger.take(-plan.kv_bytes if language else 0)
    if plan.budget.limited:
        residency.close()
    with ledger.during(FINISH):
        ledger.ram += finish_bytes(bundle.model.dimensions, plan.demand.frames)
        ledger.take(0)
    return ledger


def test_a_component_in_parts_takes_what_its_largest_part_takes() -> None:
    def takes(*sizes: int) -> tuple[int, int]:
        variant = Variant("int4-block32", "onnx", tuple(Part("f", size * MIB, "") for size in sizes), {})
        dims = Bundle.open(PACKAGED).model.dimensions
        found = footprint(Component.UNET, variant, dims, DEMAND)
        return found.loaded, found.loading

    assert takes(300, 500, 400) == takes(500) < takes(1200)


def in_parts(component: Component, count: int) -> Bundle:
    """The bundle that ships, one component of it cut."""
    bundle = Bundle.open(PACKAGED, verify=False)
    variant = bundle.variant(component)
    size = sum(part.bytes for part in variant.parts)
    cut = replace(variant, parts=(replace(variant.parts[0], bytes=size // count),) * count)
    return replace(bundle, components={**bundle.components, component: (cut,)})


def test_a_component_in_parts_is_there_as_a_whole_where_that_fits() -> None:
    bundle, demand = in_parts(Component.UNET, 5), replace(DEMAND, steps=12)
    seconds, ways_found = [], []
    for ram in range(200, 100, -1):
        try:
            plan = make_plan([bundle], [demand], Budget(ram * MIB), PLACE)[1]
        except BudgetError:
            break
        kept, whole = (Component.UNET in found for found in (plan.choice.kept, plan.choice.whole))
        assert whole or not kept, "what stays loaded is there as a whole"
        ways_found.append((kept, whole))
        seconds.append(plan.load_seconds_per_frame)
    assert ways_found[0] == (True, True) and ways_found[-1] == (False, False)
    assert (False, True) in ways_found, "while it is used"
    assert seconds == sorted(seconds) and seconds[-1] > 12 * 5 * 0.02, "parts are loaded in every call"


def test_parts_are_loaded_in_every_call_and_cost_seconds_each_time() -> None:
    def price(component: Component, tile: int = 0, batched: bool = True, **asked: Any) -> float:
        bundle, demand = in_parts(component, 4), replace(DEMAND, **asked)
        variant, dims = bundle.variant(component), bundle.model.dimensions
        return footprint(component, variant, dims, demand, batched, tile).load_seconds

    assert price(Component.UNET, steps=12) == pytest.approx(12 * price(Component.UNET))
    assert price(Component.UNET, batched=False) == pytest.approx(2 * price(Component.UNET))
    assert price(Component.VAE_DECODER, tile=12) == pytest.approx(4 * price(Component.VAE_DECODER))
    free = make_plan([in_parts(Component.UNET, 4)], [DEMAND], Budget(), PLACE)[1]
    assert free.load_seconds_per_frame > 0, "without a budget they are not kept, either"


def test_what_a_manifest_says_of_work_is_planned_with() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    dims, told = bundle.model.dimensions, {"8": 80 * MIB, "12": 180 * MIB, "16": 320 * MIB}
    decoder = replace(bundle.variant(Component.VAE_DECODER), work=told)
    works = [
        footprint(Component.VAE_DECODER, decoder, dims, DEMAND, tile=tile).working
        for tile in (8, 10, 12, 0, 20)
    ]
    assert all(told[side] <= work for side, work in zip(("8", "12", "12", "16", "16"), works, strict=True))
    assert works[1] < works[2] + MIB and works[3] == works[4] > works[2]
    unet = replace(bundle.variant(Component.UNET), work={"1": 100 * MIB, "2": 200 * MIB})
    one, two = (footprint(Component.UNET, unet, dims, DEMAND, batched).working for batched in (False, True))
    assert one * 2 == pytest.approx(two, abs=2) and two >= 200 * MIB


def test_of_a_large_token_table_the_rows_that_are_read_count() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    dims = replace(bundle.model.dimensions, hidden_size=4096, vocab_size=32000)
    large = Variant("fp16", "table", (Part("f", 2 * 32000 * 4096, ""),), {})
    few, many = (
        footprint(Component.TOKEN_EMBEDDING, large, dims, replace(DEMAND, frames=frames)).loaded
        for frames in (2, 1000)
    )
    assert few < 40 * MIB and many == 2 * 32000 * 4096


def random_bundle(lot: random.Random, shape: Bundle, name: str = "random") -> Bundle:
    """Of any size and in any schemes, some components in several forms, some forms in several parts."""
    scale = 10 ** lot.uniform(-1, 3)

    def variant(scheme: str) -> Variant:
        sizes = [int(scale * 10 ** lot.uniform(3, 7)) for _ in range(lot.choice((1, 1, 1, 2, 5)))]
        return Variant(scheme, "onnx", tuple(Part("f", size, "") for size in sizes), {})

    components: dict[Component, tuple[Variant, ...]] = {
        component: tuple(map(variant, lot.sample(SCHEMES, lot.choice((1, 1, 2, 3)))))
        for component in Component
        if component is not Component.TOKEN_EMBEDDING
    }
    table = Variant("fp16", "table", (Part("f", int(scale * 10**6), ""),), {})
    model = replace(shape.model, first_frame=lot.choice(("char_ldm", "language_model")))
    return replace(
        shape, name=name, model=model, components={**components, Component.TOKEN_EMBEDDING: (table,)}
    )


def random_demand(lot: random.Random) -> Demand:
    frames = lot.choice((1, 2, 5, 24, 200))
    tokens = lot.randint(60, 4096)
    return Demand(
        frames, tokens, lot.randint(40, tokens), lot.randint(0, 6), lot.random() < 0.8, lot.randint(1, 50)
    )


@pytest.mark.parametrize("cases", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_plan_is_never_below_what_is_used_and_no_larger_than_its_budget(cases: int) -> None:
    lot, shape = random.Random(cases), Bundle.open(PACKAGED, verify=False)
    made = refused = 0
    while made < cases:
        bundle, demand = random_bundle(lot, shape), random_demand(lot)
        place = Place(lot.randint(20, 400) * MIB, on_gpu=lot.random() < 0.3)
        free = make_plan([bundle], [demand], Budget(), place)[1]
        ram, vram = (int(size * lot.uniform(0.3, 1.2)) for size in (free.ram_bytes, free.vram_bytes))
        budget = lot.choice((Budget(), Budget(ram), Budget(ram, vram) if place.on_gpu else Budget(ram)))
        try:
            plan = make_plan([bundle], [demand], budget, place)[1]
        except BudgetError as fault:
            refused += 1
            assert "at least" in fault.message and "--ram" in fault.hint or "--vram" in fault.hint
            continue
        made += 1
        assert budget.ram is None or plan.ram_bytes <= budget.ram
        assert budget.vram is None or plan.vram_bytes <= budget.vram
        ledger = tell(plan, narrowed(bundle, plan.choice))
        for phase in plan.phases:
            ram, vram = ledger.most.get(phase.name, (0, 0))
            assert ram <= phase.ram_bytes and vram <= phase.vram_bytes, phase
    assert refused > cases / 20


def test_the_budget_that_a_refusal_names_is_enough_and_hardly_more() -> None:
    lot, shape = random.Random(1), Bundle.open(PACKAGED, verify=False)
    for _ in range(50):
        bundle, demand = random_bundle(lot, shape), random_demand(lot)
        with pytest.raises(BudgetError) as caught:
            make_plan([bundle], [demand], Budget(1), PLACE)
        needed = parse_bytes(caught.value.hint.split("`")[1].removeprefix("--ram "))
        plan = make_plan([bundle], [demand], Budget(needed), PLACE)[1]
        assert plan.ram_bytes <= needed
        with pytest.raises(BudgetError):
            make_plan([bundle], [demand], Budget(needed - 3 * MIB), PLACE)


def test_without_a_budget_everything_stays_as_it_is() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    chosen, plan = make_plan([bundle], [DEMAND], Budget(), PLACE)
    assert chosen is bundle and narrowed(bundle, plan.choice) == bundle
    assert set(plan.choice.kept) == set(used_components(bundle, DEMAND))
    assert plan.choice.batched and not plan.choice.tile and not plan.load_seconds_per_frame
    assert ways(plan, bundle) == {}


def test_seconds_are_given_up_before_anything_that_shows() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    free = make_plan([bundle], [DEMAND], Budget(), PLACE)[1]
    seconds = -1.0
    for ram in range(free.ram_bytes + 8 * MIB, 0, -4 * MIB):
        try:
            plan = make_plan([bundle], [DEMAND], Budget(ram), PLACE)[1]
        except BudgetError:
            break
        assert plan.load_seconds_per_frame >= seconds, "less memory never takes fewer seconds"
        seconds = plan.load_seconds_per_frame
        if plan.choice.context is not None:
            break
    assert seconds > 0 and not plan.choice.kept and not plan.choice.batched


def test_narrower_weights_are_taken_where_wide_ones_do_not_fit() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    unet = bundle.components[Component.UNET][0]
    wide = replace(unet, scheme="fp32", parts=(Part("f", 44 * MIB, ""),))
    both = replace(bundle, components={**bundle.components, Component.UNET: (unet, wide)})
    widest = make_plan([both], [DEMAND], Budget(400 * MIB), PLACE)[1]
    narrow = make_plan([both], [DEMAND], Budget(130 * MIB), PLACE)[1]
    assert widest.choice.schemes[Component.UNET] == "fp32"
    assert narrow.choice.schemes[Component.UNET] == "int8"
    assert narrowed(both, widest.choice).variant(Component.UNET) is wide
    assert ways(narrow, both)["unet"] == "int8"


def test_of_several_bundles_the_widest_that_fits_is_taken() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    large = replace(
        bundle,
        name="large",
        components={
            component: tuple(replace(v, scheme="fp32", parts=(Part("f", 40 * MIB, ""),)) for v in variants)
            for component, variants in bundle.components.items()
        },
    )
    both, demands = [large, bundle], [DEMAND, DEMAND]
    assert make_plan(both, demands, Budget(900 * MIB), PLACE)[0] is large
    assert make_plan(both, demands, Budget(140 * MIB), PLACE)[0] is bundle


def test_the_context_is_shortened_last_and_narrowed_before() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    long = replace(DEMAND, frames=24, tokens=2000)
    ram, plans = make_plan([bundle], [long], Budget(), PLACE)[1].ram_bytes, []
    while True:
        try:
            plans.append(make_plan([bundle], [long], Budget(ram), PLACE)[1])
        except BudgetError:
            break
        ram -= MIB
    shortened = [plan.choice.context is not None for plan in plans]
    assert shortened == sorted(shortened) and shortened[-1]
    narrow = [plan for plan in plans if plan.choice.kv_width != "fp32" and plan.choice.context is None]
    assert narrow and narrow[0].kv_bytes <= plans[0].kv_bytes / 2
    last = plans[-1]
    assert last.kv_bytes < plans[0].kv_bytes / 2
    assert narrowed(bundle, last.choice).model.context == last.choice.context


def test_a_tile_that_was_asked_for_is_planned_with() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    whole, tiled = (make_plan([bundle], [DEMAND], Budget(), PLACE, tile=tile)[1] for tile in (0, 12))
    assert tiled.choice.tile == 12 and ways(tiled, bundle) == {}
    decoder = bundle.variant(Component.VAE_DECODER)
    dims = bundle.model.dimensions
    large = replace(dims, image_size=1024, latent_size=64)
    sizes = [
        footprint(Component.VAE_DECODER, decoder, large, DEMAND, True, tile).working for tile in (16, 32, 0)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] / 2
    assert tiled.ram_bytes <= whole.ram_bytes


def test_narrow_keys_and_values_are_widened_while_they_are_read() -> None:
    bundle = Bundle.open(PACKAGED, verify=False)
    model, dims = bundle.variant(Component.LANGUAGE_MODEL), bundle.model.dimensions
    wide, narrow = (
        footprint(Component.LANGUAGE_MODEL, model, dims, DEMAND, kv_width=width).working
        for width in ("fp32", "int8")
    )
    assert narrow - wide == DEMAND.tokens * 2 * 6 * 4 * 64 * 4


def test_a_plan_is_json(tmp_path: Path) -> None:
    import json

    plan = make_plan([Bundle.open(PACKAGED, verify=False)], [DEMAND], Budget(150 * MIB), PLACE)[1]
    again = json.loads(json.dumps(plan.as_dict()))
    assert again["ram_bytes"] == max(phase["ram_bytes"] for phase in again["phases"])
    assert Choice(**again["choice"]).batched == plan.choice.batched
