"""The story loop with a real model of random weights: order, determinism, limits, refusals."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle, hash_file
from storyv_lite.components import Component
from storyv_lite.errors import BackendError, BundleError, ConfigError, FrameError, StoryError
from storyv_lite.memory import resident_memory
from storyv_lite.prompt import history, query, text_history
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import Session
from storyv_lite.runtime.backends.ort import OrtBackend
from storyv_lite.runtime.images import png
from storyv_lite.runtime.pipeline import Frame, Progress, StoryPipeline
from storyv_lite.runtime.soundness import check_sound
from storyv_lite.story import Caption, Story

PICNIC = (
    "Milo the fox is waving in the meadow.",
    "He is holding a red balloon.",
    "Luna is running to him.",
    "They are waving.",
)


def story(*captions: str) -> Story:
    return Story(tuple(map(Caption, captions)))


def pngs(frames: list[Frame]) -> list[bytes]:
    return [png(frame.image, {"caption": frame.caption}) for frame in frames]


class Counting(OrtBackend):
    """Counts the calls of every component."""

    def __init__(self) -> None:
        super().__init__("cpu", threads=1)
        self.calls: Counter[str] = Counter()

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        self.calls[f"open {component}"] += 1
        return Counted(super().open(bundle, component, whole), str(component), self.calls)


class Counted:
    def __init__(self, session: Session, name: str, calls: Counter[str]) -> None:
        self.session, self.name, self.calls = session, name, calls

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.calls[self.name] += 1
        return self.session.run(inputs)

    def close(self) -> None:
        self.session.close()


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> StoryPipeline:
    return StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)


@pytest.fixture
def changed(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny bundle with an edited manifest."""

    def make(**model: Any) -> Path:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(tiny_bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["model"] |= model
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


def test_a_story_becomes_one_frame_per_caption(pipeline: StoryPipeline) -> None:
    frames = list(pipeline.draw(story(*PICNIC), seed=3))
    size = pipeline.bundle.model.dimensions.image_size
    assert [frame.caption for frame in frames] == list(PICNIC)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert all(frame.image.shape == (size, size, 3) and frame.image.dtype == np.uint8 for frame in frames)
    assert all(frame.conditioning == "story" and frame.seed == 3 and not frame.reduced for frame in frames)
    assert {"read", "map", "draw", "decode"} <= frames[0].timings_ms.keys()
    assert "look" in frames[1].timings_ms and "look" not in frames[0].timings_ms


def test_the_same_seed_draws_the_same_bytes(pipeline: StoryPipeline, tiny_bundle: Path) -> None:
    first = pngs(list(pipeline.draw(story(*PICNIC), seed=3)))
    fresh = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    assert pngs(list(pipeline.draw(story(*PICNIC), seed=3))) == first
    assert pngs(list(fresh.draw(story(*PICNIC), seed=3))) == first
    assert pngs(list(pipeline.draw(story(*PICNIC), seed=4))) != first


@pytest.mark.parametrize("first_frame", ["language_model", "char_ldm"])
def test_a_story_goes_on_behind_finished_frames_to_the_same_bytes(
    changed: Callable[..., Path], first_frame: str
) -> None:
    folder = changed(context={"tokens": 1024, "frames": 4}, first_frame=first_frame)
    told = story(*PICNIC, *PICNIC)
    whole = list(StoryPipeline.from_bundle(folder, device="cpu", threads=1).draw(told, seed=3))
    assert whole[-1].reduced
    for count in (1, 3, 6):
        backend = Counting()
        pipeline = StoryPipeline(Bundle.open(folder), backend)
        there = (frame.image for frame in whole[:count])
        rest = list(pipeline.draw(told, seed=3, finished=there))
        assert [frame.index for frame in rest] == list(range(count, 8))
        assert pngs(rest) == pngs(whole)[count:]
        assert [frame.context for frame in rest] == [frame.context for frame in whole[count:]]
        assert backend.calls["vae_decoder"] == 8 - count and backend.calls["vision_encoder"] == 7


def test_a_frame_that_failed_is_neither_read_nor_remembered(pipeline: StoryPipeline) -> None:
    whole = list(pipeline.draw(story(*PICNIC), seed=3))
    rest = list(pipeline.draw(story(*PICNIC), seed=3, finished=[whole[0].image, None]))
    assert [frame.context for frame in rest] == [(0,), (0, 2)]
    assert not any(frame.reduced for frame in rest) and pngs(rest) != pngs(whole)[2:]
    again = list(pipeline.draw(story(*PICNIC), seed=3, finished=[whole[0].image, None, rest[0].image]))
    assert pngs(again) == pngs(rest)[1:]


def test_a_caption_may_have_a_seed_of_its_own(pipeline: StoryPipeline) -> None:
    told = Story((Caption(PICNIC[0]), Caption(PICNIC[1], 9), Caption(PICNIC[2])))
    frames, plain = list(pipeline.draw(told, seed=3)), list(pipeline.draw(story(*PICNIC[:3]), seed=3))
    assert [frame.seed for frame in frames] == [3, 9, 3]
    assert [one == other for one, other in zip(pngs(frames), pngs(plain), strict=True)] == [
        True,
        False,
        False,
    ]


def test_a_picture_that_shows_nothing_is_refused() -> None:
    with pytest.raises(FrameError, match="a picture of one colour"):
        check_sound(Component.VAE_DECODER, np.full((4, 4, 3), 7, np.uint8))


def test_a_shorter_story_is_the_beginning_of_the_longer_one(pipeline: StoryPipeline) -> None:
    long, short = (list(pipeline.draw(story(*PICNIC[:n]), seed=1)) for n in (4, 2))
    assert pngs(long)[:2] == pngs(short)


def test_each_frame_reads_its_predecessor_and_its_own_query(pipeline: StoryPipeline) -> None:
    frames = list(pipeline.draw(story(*[PICNIC[0]] * 5), num_inference_steps=1))
    asked = len(pipeline.model.piece(0, query(PICNIC[0])))
    told = len(pipeline.model.piece(0, history(PICNIC[0])))
    assert [frame.tokens_read for frame in frames] == [1 + asked, *[told + asked] * 4]


def test_pictures_are_encoded_once_and_the_empty_caption_too(tiny_bundle: Path) -> None:
    backend = Counting()
    pipeline = StoryPipeline(Bundle.open(tiny_bundle), backend)
    list(pipeline.draw(story(*PICNIC)))
    assert backend.calls["vision_encoder"] == 3  # nobody looks at the last frame
    assert backend.calls["text_encoder"] == 1
    assert backend.calls["mapper"] == backend.calls["vae_decoder"] == 4
    assert backend.calls["unet"] == 16
    list(pipeline.draw(story(*PICNIC)))
    assert backend.calls["text_encoder"] == 1
    assert all(count == 1 for name, count in backend.calls.items() if name.startswith("open "))
    assert not backend.calls["open character_encoder"] and not backend.calls["open fusion"]


def test_frames_come_as_soon_as_they_are_finished(tiny_bundle: Path) -> None:
    backend = Counting()
    frames = StoryPipeline(Bundle.open(tiny_bundle), backend).draw(story(*PICNIC))
    next(frames)
    assert backend.calls["vae_decoder"] == 1
    assert backend.calls["unet"] == 4


def test_progress_names_every_step_of_every_frame(pipeline: StoryPipeline) -> None:
    told: list[Progress] = []
    list(pipeline.draw(story(*PICNIC[:2]), num_inference_steps=2, on_progress=told.append))
    one = [("read", 0, 1), ("draw", 1, 2), ("draw", 2, 2), ("decode", 0, 1)]
    assert [(p.phase, p.step, p.steps) for p in told] == one * 2
    assert [p.frame for p in told] == [0] * 4 + [1] * 4
    assert {p.frames for p in told} == {2}


def test_the_first_frame_may_come_from_portraits(changed: Callable[..., Path]) -> None:
    backend = Counting()
    pipeline = StoryPipeline(Bundle.open(changed(first_frame="char_ldm")), backend)
    frames = list(pipeline.draw(story("Milo and Luna are waving.", *PICNIC[1:3])))
    assert [frame.conditioning for frame in frames] == ["portraits", "story", "story"]
    assert backend.calls["character_encoder"] == backend.calls["fusion"] == 1
    assert frames[0].tokens_read == 0
    begin, told = 1, len(pipeline.model.piece(0, history("Milo and Luna are waving.")))
    assert frames[1].tokens_read == begin + told + len(pipeline.model.piece(0, query(PICNIC[1])))


def test_a_context_of_captions_looks_at_no_picture(tiny_bundle: Path) -> None:
    backend = Counting()
    pipeline = StoryPipeline(Bundle.open(tiny_bundle), backend)
    frames = list(pipeline.draw(story(*PICNIC), context="captions"))
    assert not backend.calls["open vision_encoder"] and {f.conditioning for f in frames} == {"story"}
    told = len(pipeline.model.piece(0, text_history(PICNIC[0])))
    assert frames[1].tokens_read == told + len(pipeline.model.piece(0, query(PICNIC[1])))


def test_without_context_every_frame_comes_from_its_caption_and_portraits(tiny_bundle: Path) -> None:
    backend = Counting()
    pipeline = StoryPipeline(Bundle.open(tiny_bundle), backend)
    frames = list(pipeline.draw(story(*PICNIC), context="none"))
    assert {frame.conditioning for frame in frames} == {"portraits"}
    assert not any(backend.calls[f"open {name}"] for name in ("vision_encoder", "mapper"))
    assert sum(frame.tokens_read for frame in frames) == 0


def test_an_unknown_context_is_refused(pipeline: StoryPipeline) -> None:
    with pytest.raises(ConfigError, match="context"):
        pipeline.draw(story(*PICNIC), context="some")


def test_a_first_frame_that_names_nobody_needs_no_portrait(changed: Callable[..., Path]) -> None:
    backend = Counting()
    pipeline = StoryPipeline(Bundle.open(changed(first_frame="char_ldm")), backend)
    (frame,) = pipeline.draw(story("A red balloon in the snow."))
    assert frame.conditioning == "portraits"
    assert not backend.calls["character_encoder"]


def test_the_plain_caption_is_read_only_where_an_evaluation_sees_it(changed: Callable[..., Path]) -> None:
    backend = Counting()
    merge = {"reference": -1, "named": 1}
    pipeline = StoryPipeline(Bundle.open(changed(merge_step=merge)), backend)
    list(pipeline.draw(story(*PICNIC)))
    assert backend.calls["text_encoder"] == 1 + 2  # the empty caption, and two that name somebody


def test_a_story_longer_than_the_context_is_read_in_a_reduced_one_and_says_so(
    changed: Callable[..., Path],
) -> None:
    folder = changed(context={"tokens": 1024, "frames": 5})
    pipeline = StoryPipeline.from_bundle(folder, device="cpu", threads=1)
    frames = list(pipeline.draw(story(*PICNIC, *PICNIC), num_inference_steps=1))
    assert [frame.context for frame in frames] == [
        (),
        (0,),
        (0, 1),
        (0, 1, 2),
        (0, 1, 2, 3),
        (0, 4),
        (0, 4, 5),
        (0, 4, 5, 6),
    ]
    assert [frame.reduced for frame in frames] == [False] * 5 + [True] * 3


def test_two_hundred_sentences_are_drawn_in_bounded_memory(changed: Callable[..., Path]) -> None:
    folder = changed(context={"tokens": 300, "frames": 24})
    pipeline = StoryPipeline.from_bundle(folder, device="cpu", threads=1)
    captions = [PICNIC[i % 4] for i in range(200)]
    last, peak = None, None
    for frame in pipeline.draw(story(*captions), num_inference_steps=1, guidance_scale=1):
        assert frame.tokens_read <= 300
        if frame.index == 50:
            peak = resident_memory().peak
        last = frame
    assert last is not None and last.index == 199
    assert last.context[-1] == 198 and len(last.context) < 18 and last.reduced
    if peak is not None:
        grown = (resident_memory().peak or 0) - peak
        assert grown < 32 * 2**20


def test_captions_that_do_not_fit_are_all_named_before_anything_is_drawn(pipeline: StoryPipeline) -> None:
    long = "Milo is waving in the meadow and " * 12
    with pytest.raises(StoryError, match=r"64 tokens per caption: frame 2 needs \d+, frame 4 needs \d+"):
        pipeline.draw(story(PICNIC[0], long, PICNIC[1], long))


def test_a_story_without_captions_is_refused(pipeline: StoryPipeline) -> None:
    with pytest.raises(StoryError, match="no captions"):
        pipeline.draw(story())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"num_inference_steps": 0}, "0 steps"),
        ({"num_inference_steps": 5000}, "takes 1 to 999"),
        ({"guidance_scale": -1.0}, "guidance scale"),
        ({"guidance_scale": float("nan")}, "guidance scale"),
    ],
)
def test_impossible_settings_are_refused_at_once(
    pipeline: StoryPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pipeline.draw(story(*PICNIC), **options)


def test_settings_not_given_come_from_the_bundle(pipeline: StoryPipeline) -> None:
    settings = pipeline.settings(seed=9, guidance_scale=2)
    assert (settings.seed, settings.num_inference_steps, settings.guidance_scale) == (9, 4, 2.0)
    assert (settings.sampler, settings.timestep_spacing) == ("dpmsolver++", "trailing")


def test_unknown_words_are_told_once_and_possessives_are_no_new_words(pipeline: StoryPipeline) -> None:
    told = story("Milo's zebra is waving, ZEBRA!", "The xylophone is Luna’s in 1999.")
    assert pipeline.unknown_words(told) == ("zebra", "xylophone")
    assert pipeline.unknown_words(story(*PICNIC)) == ()


def test_a_closed_pipeline_draws_again(pipeline: StoryPipeline) -> None:
    before = pngs(list(pipeline.draw(story(PICNIC[0]))))
    pipeline.close()
    assert pngs(list(pipeline.draw(story(PICNIC[0])))) == before


def test_a_damaged_bundle_is_refused_before_it_is_loaded(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, folder)
    data = folder / "unet" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        StoryPipeline.from_bundle(folder, device="cpu")


def test_a_graph_of_another_model_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(tiny_bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["components"]["mapper"]["variants"] = manifest["components"]["vae_decoder"]["variants"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pipeline = StoryPipeline.from_bundle(folder, device="cpu", threads=1)
    with pytest.raises(BundleError, match="`mapper` of .* takes `latents`"):
        list(pipeline.draw(story(PICNIC[0])))


def test_a_component_that_fails_while_it_runs_is_named(pipeline: StoryPipeline) -> None:
    with pytest.raises(BackendError, match="`mapper` failed"):
        pipeline.model.map(np.zeros((3, 5), dtype=np.float32))


def test_a_graph_cannot_read_files_outside_its_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    """The manifest may be true to the letter and the graph still point elsewhere."""
    import onnx

    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    shutil.copy(folder / "mapper" / "model.onnx.data", tmp_path / "secret")
    graph = onnx.load(folder / "mapper" / "model.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../secret"
    onnx.save(graph, folder / "mapper" / "model.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    part = manifest["components"]["mapper"]["variants"][0]["parts"][0]
    part["sha256"] = hash_file(folder / "mapper" / "model.onnx")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="cannot be loaded"):
        StoryPipeline.from_bundle(folder, device="cpu", threads=1).model.session(Component.MAPPER)


def test_a_device_that_is_not_there_is_an_error_and_never_a_silent_cpu() -> None:
    if open_backend("auto").device == "cuda":
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(BackendError, match="`cuda` was asked for"):
        open_backend("cuda")
    assert open_backend("auto").reason.startswith("no CUDA")
    with pytest.raises(BackendError, match="auto, cpu, cuda"):
        open_backend("tpu")


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_decoder_that_answers_with_one_colour_or_nan_is_told_by_name(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1)
    decoder = pipeline.model.session(Component.VAE_DECODER)
    frames = pipeline.draw(Story.from_text("Milo is waving. He is running."), num_inference_steps=1)
    assert next(frames).index == 0
    broken = {"image": np.full((1, 3, 32, 32), value, np.float32)}
    monkeypatch.setattr(decoder, "run", lambda inputs: broken)
    with pytest.raises(FrameError, match="`vae_decoder` answered with (a picture|NaN)"):
        next(frames)
