"""A story of any length in a context of bounded size: what is read, what is read anew, what is kept of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import OPTConfig, OPTForCausalLM

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import open_checkpoint
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError
from storyv_lite.manifest import Context
from storyv_lite.modeling.components import LanguageModel
from storyv_lite.prompt import history, query
from storyv_lite.runtime.backends import open_backend, open_torch_backend
from storyv_lite.runtime.backends.base import CacheStorage
from storyv_lite.runtime.backends.pytorch import TorchLanguageSession
from storyv_lite.runtime.context_size import bytes_per_token, computed_width, parse_tokens, stored_width
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.kv_cache import KVCache
from storyv_lite.runtime.language import Language
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.runtime.story_context import Reading, StoryContext
from storyv_lite.story import Caption, Story

LIMITS = Context(tokens=400, frames=24)
TOLD = (
    "Milo the fox is waving in the meadow.",
    "He is holding a red balloon.",
    "Luna is running to him.",
    "They are jumping on the beach.",
    "Bruno is sleeping there.",
    "He is reading a book.",
)


@pytest.fixture(scope="module", params=["rotary, graphs", "rotary, torch", "learned, torch"])
def model(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_checkpoint: Path) -> Model:
    if request.param == "rotary, graphs":
        return Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))
    found = Model(open_checkpoint(tiny_checkpoint), open_torch_backend("cpu", "fp32", 1))
    if request.param == "learned, torch":
        sizes = {"hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        torch.manual_seed(0)
        config = OPTConfig(vocab_size=32, word_embed_proj_dim=64, max_position_embeddings=1024, **sizes)
        opt = LanguageModel(OPTForCausalLM(config).eval())
        session = TorchLanguageSession(opt, Component.LANGUAGE_MODEL, found.dims)
        found.__dict__["language"] = Language(
            session, found.story_tokenizer, found.language._table, found.dims
        )
    return found


def captions(count: int) -> list[Caption]:
    return [Caption(TOLD[0]), Caption(TOLD[2]), *(Caption(TOLD[i % 6]) for i in range(2, count))]


def picture(index: int) -> Pixels:
    return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def tell(
    model: Model, count: int, limits: Context = LIMITS, kv_cache: str | None = None
) -> list[tuple[NDArray[np.float32], Reading]]:
    """Read a story whose pictures are noise; states and reading of every frame."""
    told = captions(count)
    context = StoryContext(model, told, True, limits, kv_cache)
    found = []
    for index, caption in enumerate(told):
        if index:
            context.remember(index - 1, told[index - 1].text, picture(index - 1))
        found.append(context.read(index, caption.text))
    return found


def test_a_rebuilt_context_is_the_reduced_story_read_from_nothing_bit_for_bit(model: Model) -> None:
    told = captions(60)
    pieces = [model.piece(i, history(one.text), model.look(picture(i))) for i, one in enumerate(told)]
    fresh: KVCache | None = None
    rebuilds = 0
    for index, (states, reading) in enumerate(tell(model, 60)):
        if reading.rebuilt:
            fresh, rebuilds = model.language.new_cache(LIMITS.tokens), rebuilds + 1
        if fresh is not None:
            kept = [pieces[frame] for frame in reading.context]
            wanted = model.piece(index, query(told[index].text))
            assert np.array_equal(model.language.read(kept, wanted, fresh), states)
            whole = model.language.read(kept, wanted, model.language.new_cache(LIMITS.tokens))
            np.testing.assert_allclose(states, whole, atol=1e-4, rtol=0)
    assert rebuilds >= 4


def test_nothing_is_read_or_held_beyond_the_cap_and_what_is_dropped_is_said(model: Model) -> None:
    behind: set[int] = set()
    for index, (_, reading) in enumerate(tell(model, 60)):
        assert reading.tokens <= reading.tokens_in_cache <= LIMITS.tokens
        assert reading.rebuilt == bool(reading.dropped) == (reading.tokens == reading.tokens_in_cache > 100)
        behind = (behind | {index - 1} if index else behind) - {*reading.dropped}
        assert set(reading.context) == behind
        assert reading.reduced == (len(behind) < index)


def test_a_story_of_a_thousand_frames_is_read_in_bounded_memory(tiny_bundle: Path) -> None:
    model = Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))
    looked, look = [], model.look

    def counted(image: Pixels) -> NDArray[np.float32]:
        looked.append(1)
        return look(image)

    model.look = counted  # type: ignore[method-assign]
    told = captions(1000)
    context = StoryContext(model, told, True, LIMITS)
    tokens, rebuilds, held = 0, 0, set()
    for index, caption in enumerate(told):
        if index:
            context.remember(index - 1, told[index - 1].text, picture(index % 7))
        _, reading = context.read(index, caption.text)
        tokens, rebuilds = tokens + reading.tokens, rebuilds + reading.rebuilt
        held.add(len(context._pieces))
    assert len(looked) == 999
    assert context._cache is not None and context._cache.capacity <= LIMITS.tokens
    assert max(held) < 30
    own = np.mean([len(model.piece(0, query(text))) + len(model.piece(0, history(text))) for text in TOLD])
    assert 50 < rebuilds < 150 and tokens < 1000 * 4 * own


@pytest.mark.parametrize(("width", "likeness"), [("fp16", 0.99999), ("int8", 0.999)])
def test_narrow_keys_and_values_give_nearly_the_same_states_and_always_the_same_ones(
    model: Model, width: str, likeness: float
) -> None:
    wide, one, two = (tell(model, 30, kv_cache=kind) for kind in (None, width, width))
    for (true, first), (states, second), (again, _) in zip(wide, one, two, strict=True):
        assert np.array_equal(states, again) and first == second
        product = float((states * true).sum() / np.linalg.norm(states) / np.linalg.norm(true))
        assert product > likeness
    assert not all(np.array_equal(true, states) for (true, _), (states, _) in zip(wide, one, strict=True))


@pytest.mark.parametrize("width", ["fp16", "int8"])
def test_between_reads_only_narrow_keys_and_values_are_there(
    model: Model, width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    session = model.language.session
    new_cache = session.new_cache

    def counted(capacity: int) -> CacheStorage:
        made.append(capacity)
        return new_cache(capacity)

    monkeypatch.setattr(session, "new_cache", counted)
    cache = model.language.new_cache(300, width)
    assert cache.nbytes == 300 * bytes_per_token(model.dims, width) and not made
    model.language.read([], model.piece(0, query(TOLD[0])), cache)
    assert made == [cache.calls[-1][1]]
    assert all(isinstance(array, np.ndarray) for array in vars(cache.storage)["arrays"].values())


def test_a_token_takes_what_its_width_says(model: Model) -> None:
    heads = 2 * 2 * 2  # keys and values, layers, heads
    assert bytes_per_token(model.dims, "fp32") == heads * 32 * 4
    assert bytes_per_token(model.dims, "fp16") == bytes_per_token(model.dims, "bf16") == heads * 32 * 2
    assert bytes_per_token(model.dims, "int8") == heads * (32 + 4)
    assert model.language.new_cache(10).nbytes == 10 * bytes_per_token(model.dims, "fp32")


@pytest.mark.parametrize(
    ("size", "tokens"),
    [("2000", 2000), (" 7 ", 7), ("512KiB", 512), ("1.5MB", 1464), ("512MiB", 524288), ("0.5 gib", 524288)],
)
def test_a_context_size_is_tokens_or_bytes(size: str, tokens: int) -> None:
    assert parse_tokens(size, 1024) == tokens


@pytest.mark.parametrize("size", ["", "many", "-5", "12.5", "4 apples", "MiB", "²"])
def test_what_is_no_context_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="is no context size"):
        parse_tokens(size, 1024)


def test_keys_and_values_are_never_stored_wider_than_they_are_computed() -> None:
    assert computed_width("as exported", "cpu") == computed_width("nf4", "cpu") == "fp32"
    assert computed_width("nf4", "cuda") == "fp16" and computed_width("bf16", "cpu") == "bf16"
    assert stored_width(None, "bf16", "cuda") == "bf16" and stored_width("int8", "bf16", "cuda") == "int8"
    with pytest.raises(ConfigError, match="computed in fp16"):
        stored_width("fp32", "nf4", "cuda")
    with pytest.raises(ConfigError, match="`int4` is no width"):
        stored_width("int4", "fp32", "cpu")


def test_a_cap_too_small_names_the_smallest_that_does(tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    story = Story(tuple(captions(6)))
    with pytest.raises(ConfigError, match="context of 30 tokens is too small: frame ") as refusal:
        pipeline.draw(story, context_size=30)
    hint = refusal.value.hint
    needed, kibibytes = hint.split("`")[1].split()[1], hint.split("`")[3].split()[1]
    with pytest.raises(ConfigError, match="too small"):
        pipeline.draw(story, context_size=int(needed) - 1)
    assert kibibytes.removesuffix("KiB") == needed  # a token takes 1 KiB here
    for size in (int(needed), needed, kibibytes):
        assert pipeline.settings(context_size=size).context_tokens == int(needed)
        frames = list(pipeline.draw(story, num_inference_steps=1, context_size=size))
        assert all(frame.context and frame.context[-1] == frame.index - 1 for frame in frames[1:])


def test_a_cap_beyond_the_models_limit_changes_nothing(tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    assert pipeline.limits(pipeline.settings(context_size="512MiB")) == pipeline.bundle.model.context
