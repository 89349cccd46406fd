"""Loading and unloading as planned: the same pictures, memory given back, the story's context kept."""

import mmap
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.components import Component
from storyv_lite.memory import resident_memory, take_peak
from storyv_lite.prompt import history, query
from storyv_lite.runtime.backends.base import Session
from storyv_lite.runtime.backends.ort import OrtBackend, OrtLanguageSession
from storyv_lite.runtime.demand import demand_of
from storyv_lite.runtime.kv_cache import Piece
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.phases import Place
from storyv_lite.runtime.pipeline import Progress, StoryPipeline
from storyv_lite.runtime.plan import Budget, MemoryPlan, make_plan
from storyv_lite.story import Caption, Story

TOLD = Story(
    tuple(map(Caption, ("Milo and Luna are waving.", "He is holding a balloon.", "They are running.")))
)
MIB = 2**20


class Watched(OrtBackend):
    """Writes down what is opened."""

    def __init__(self) -> None:
        super().__init__("cpu", threads=1)
        self.opened: Counter[Component] = Counter()

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        self.opened[component] += 1
        return super().open(bundle, component, whole)

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> OrtLanguageSession:
        self.opened[Component.LANGUAGE_MODEL] += 1
        return super().open_language_model(bundle, whole)


def plan_with(pipeline: StoryPipeline, ram: int) -> MemoryPlan:
    demand = demand_of(pipeline.model, TOLD.captions, 3.0, pipeline.bundle.model.context)
    return make_plan([pipeline.bundle], [demand], Budget(ram), Place(0))[1]


def test_pictures_are_the_same_whatever_stays_loaded(tiny_bundle: Path) -> None:
    free = StoryPipeline(Bundle.open(tiny_bundle), OrtBackend("cpu", threads=1))
    whole = [frame.image for frame in free.draw(TOLD, seed=3)]
    backend = Watched()
    tight = StoryPipeline(Bundle.open(tiny_bundle), backend)
    plan = plan_with(tight, 400 * MIB)
    tight.obey(replace(plan, choice=replace(plan.choice, kept=())))
    frames = [frame.image for frame in tight.draw(TOLD, seed=3)]
    assert all(np.array_equal(one, two) for one, two in zip(whole, frames, strict=True))
    assert backend.opened[Component.UNET] == backend.opened[Component.VAE_DECODER] == 3
    assert backend.opened[Component.LANGUAGE_MODEL] == 3 and backend.opened[Component.VISION_ENCODER] == 2
    assert not tight.model.residency._sessions and tight.model.residency._language is None


def test_a_model_that_writes_is_loaded_no_more_often_than_one_that_reads(tiny_bundle: Path) -> None:
    backend = Watched()
    tight = StoryPipeline(Bundle.open(tiny_bundle), backend)
    plan = plan_with(tight, 400 * MIB)
    tight.obey(replace(plan, choice=replace(plan.choice, kept=())))
    list(tight.draw(TOLD, seed=3, spell_out=True))
    assert backend.opened[Component.LANGUAGE_MODEL] == 3
    assert tight.model.residency._language is None


def test_what_is_kept_is_loaded_once_and_before_the_first_frame(tiny_bundle: Path) -> None:
    backend = Watched()
    pipeline = StoryPipeline(Bundle.open(tiny_bundle), backend)
    pipeline.obey(plan_with(pipeline, 900 * MIB))
    drawing = pipeline.draw(TOLD)
    assert not backend.opened
    frame = next(drawing)
    assert backend.opened == Counter(pipeline.plan.choice.kept if pipeline.plan else ())
    assert "load" in frame.timings_ms
    list(drawing)
    assert set(backend.opened.values()) == {1}


@pytest.mark.parametrize("kept", [(), (Component.LANGUAGE_MODEL,)])
def test_the_context_outlives_the_language_model_bit_for_bit(
    tiny_bundle: Path, kept: Collection[Component]
) -> None:
    bundle = Bundle.open(tiny_bundle)

    def states(model: Model) -> list[NDArray[np.float32]]:
        cache = model.language.new_cache(400)
        pieces: list[Piece] = []
        found = []
        for index, caption in enumerate(TOLD.captions):
            asked = model.piece(index, query(caption.text))
            found.append(model.language.read(pieces, asked, cache))
            visual = np.full((model.dims.visual_tokens, model.dims.hidden_size), index, np.float32)
            pieces.append(model.piece(index, history(caption.text), visual))
        assert len(cache.calls) == 3 and cache.calls[2][0] > 0  # nothing is read twice
        return found

    right = states(Model(bundle, OrtBackend("cpu", threads=1)))
    backend = Watched()
    found = states(Model(bundle, backend, kept))
    assert all(np.array_equal(one, two) for one, two in zip(right, found, strict=True))
    assert backend.opened[Component.LANGUAGE_MODEL] == (1 if kept else 3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_mapped_and_what_is_unloaded_is_given_back() -> None:
    model = Model(Bundle.open(PACKAGED, verify=False), OrtBackend("cpu", threads=1), kept=())
    dims = model.dims
    feed = {
        "sample": np.zeros((2, dims.latent_channels, dims.latent_size, dims.latent_size), np.float32),
        "timestep": np.array([500]),
        "encoder_hidden_states": np.zeros((2, dims.text_tokens, dims.cross_attention_dim), np.float32),
    }
    weights = str(PACKAGED.resolve() / "unet" / "model.onnx.data")
    before, loaded, after = [], [], []
    for _ in range(2):  # the first time brings the library's own code
        before.append(resident_memory().now or 0)
        with model.residency.use(Component.UNET) as unet:
            unet.run(feed)
            loaded.append(resident_memory().now or 0)
            assert weights in Path("/proc/self/maps").read_text()
        after.append(resident_memory().now or 0)
        assert weights not in Path("/proc/self/maps").read_text()
    assert loaded[1] - before[1] > 15 * MIB and after[1] - before[1] < 2 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_peak_is_taken_once_and_not_forgotten() -> None:
    take_peak()
    with mmap.mmap(-1, 64 * MIB) as block:  # malloc might hand out what an earlier test has freed
        block.write(b"x" * (64 * MIB))
    peak = take_peak()
    again = take_peak()
    assert peak is not None and again is not None and peak - again > 32 * MIB
    assert (resident_memory().peak or 0) >= peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_freed_while_a_frame_is_drawn_is_given_back_with_it(tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    kept: list[bytes] = []
    held: list[int] = []

    def leave_holes(progress: Progress) -> None:
        if progress.phase == "decode":
            blocks = [bytes(2**14) for _ in range(4000)]
            held.append(resident_memory().anonymous or 0)
            kept.extend(blocks[::16])  # the heap cannot shrink below the last of them

    for _ in pipeline.draw(TOLD, num_inference_steps=1, on_progress=leave_holes):
        assert held.pop() - (resident_memory().anonymous or 0) > 40 * 2**20
