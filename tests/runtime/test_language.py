"""Reading a story: what the language model sees, how often, and what its cache remembers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BundleError
from storyv_lite.prompt import history, query
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.ort import OrtLanguageSession
from storyv_lite.runtime.backends.parts import Parts
from storyv_lite.runtime.kv_cache import KVCache, Piece
from storyv_lite.runtime.model import Model

CAPTIONS = ("Milo is waving in the meadow.", "He is holding a red balloon.", "Luna is running to him there.")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))


def finished(model: Model, frames: int) -> list[Piece]:
    """Finished frames with pictures that are noise."""
    rng = np.random.default_rng(0)
    shape = (model.dims.visual_tokens, model.dims.hidden_size)
    return [
        model.piece(i, history(CAPTIONS[i % 3]), rng.standard_normal(shape).astype(np.float32))
        for i in range(frames)
    ]


def read_everything(model: Model, context: list[Piece], wanted: Piece) -> NDArray[np.float32]:
    """The [IMG] states by one call with an empty past: what the cache has to reproduce."""
    language, dims = model.language, model.dims
    embeds = language.embed([language.begin, *context, wanted])
    past = np.zeros((1, dims.num_key_value_heads, 0, dims.head_dim), dtype=np.float32)
    inputs = {
        f"past_key_values.{i}.{kind}": past
        for i in range(dims.num_hidden_layers)
        for kind in ("key", "value")
    }
    mask = np.ones((1, embeds.shape[1]), dtype=np.int64)
    outputs = language.session.run({"inputs_embeds": embeds, "attention_mask": mask, **inputs})
    states: NDArray[np.float32] = outputs["last_hidden_state"][0, -dims.image_tokens :]
    return states


def test_reading_through_the_cache_equals_reading_everything(model: Model) -> None:
    story = finished(model, 12)
    cache = model.language.new_cache(600)
    for frame in range(12):
        wanted = model.piece(frame, query(CAPTIONS[frame % 3]))
        cached = model.language.read(story[:frame], wanted, cache)
        assert cached.shape == (model.dims.image_tokens, model.dims.hidden_size)
        np.testing.assert_allclose(cached, read_everything(model, story[:frame], wanted), atol=1e-4, rtol=0)


def test_the_states_depend_on_pictures_and_captions_before(model: Model) -> None:
    wanted = model.piece(2, query("They are waving."))
    one, two = finished(model, 2), finished(model, 2)
    two[0] = Piece(two[0].frame, two[0].ids, -np.asarray(two[0].visual))
    three = [finished(model, 3)[2], one[1]]
    states = [model.language.read(past, wanted, model.language.new_cache(200)) for past in (one, two, three)]
    assert np.abs(states[0] - states[1]).max() > 1e-3
    assert np.abs(states[0] - states[2]).max() > 1e-3


def test_every_frame_reads_its_predecessor_and_its_own_query_and_no_more(model: Model) -> None:
    caption = "Milo is waving in the meadow."
    dims, rng = model.dims, np.random.default_rng(0)
    visual = rng.standard_normal((dims.visual_tokens, dims.hidden_size)).astype(np.float32)
    cache = model.language.new_cache(600)
    story: list[Piece] = []
    for frame in range(8):
        model.language.read(story, model.piece(frame, query(caption)), cache)
        story.append(model.piece(frame, history(caption), visual))
    asked, told = len(model.piece(0, query(caption))), len(story[0])
    assert [length for _, length in cache.calls] == [1 + asked, *[told + asked] * 7]
    assert [start for start, _ in cache.calls] == [0, 1, *(1 + told * i for i in range(1, 7))]


def test_rewind_restores_the_committed_prefix(model: Model) -> None:
    story = finished(model, 4)
    cache = model.language.new_cache(400)
    model.language.read(story, model.piece(4, query(CAPTIONS[0])), cache)
    before = cache.to_host()
    length = cache.length
    cache.append(model.language.session, model.language.embed([model.piece(4, query(CAPTIONS[1]))]))
    assert cache.length > length
    cache.rewind()
    assert cache.length == length == cache.committed
    after = cache.to_host()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_query_that_was_rewound_leaves_no_trace(model: Model) -> None:
    story = finished(model, 3)
    disturbed, calm = model.language.new_cache(400), model.language.new_cache(400)
    for cache in (disturbed, calm):
        model.language.read(story[:2], model.piece(2, query(CAPTIONS[0])), cache)
    model.language.read(story[:2], model.piece(2, query("Bruno is sleeping in the snow now.")), disturbed)
    wanted = model.piece(3, query(CAPTIONS[1]))
    expected = model.language.read(story, wanted, calm)
    assert np.array_equal(model.language.read(story, wanted, disturbed), expected)


def test_a_saved_cache_goes_on_as_if_nothing_had_happened(model: Model, tmp_path: Path) -> None:
    story = finished(model, 4)
    cache = model.language.new_cache(400)
    model.language.read(story[:3], model.piece(3, query(CAPTIONS[0])), cache)
    cache.save(tmp_path / "context.safetensors")
    loaded = model.language.new_cache(400)
    loaded.load(tmp_path / "context.safetensors")
    assert loaded.pieces == cache.pieces
    assert loaded.calls == cache.calls
    assert all(
        np.array_equal(a, b) for a, b in zip(cache.to_host().values(), loaded.to_host().values(), strict=True)
    )
    for kept, told in zip(loaded.pieces[1:], story, strict=False):
        assert np.array_equal(np.asarray(kept.visual), np.asarray(told.visual))
    wanted = model.piece(4, query(CAPTIONS[2]))
    expected = model.language.read(story, wanted, cache)
    assert np.array_equal(model.language.read(story, wanted, loaded), expected)


def test_a_damaged_saved_cache_is_refused(model: Model, tmp_path: Path) -> None:
    (tmp_path / "context.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(BundleError, match="no saved story context"):
        model.language.new_cache(400).load(tmp_path / "context.safetensors")
    cache = model.language.new_cache(400)
    model.language.read(finished(model, 3), model.piece(3, query(CAPTIONS[0])), cache)
    cache.save(tmp_path / "long.safetensors")
    with pytest.raises(BundleError, match="room for 20"):
        model.language.new_cache(20).load(tmp_path / "long.safetensors")


def test_a_cache_never_grows_past_its_room(model: Model) -> None:
    cache = model.language.new_cache(30)
    with pytest.raises(ValueError, match="do not fit a cache of 30"):
        model.language.read(finished(model, 2), model.piece(2, query(CAPTIONS[0])), cache)


def test_only_what_was_read_can_be_committed(model: Model) -> None:
    cache = model.language.new_cache(100)
    with pytest.raises(ValueError, match="than were read"):
        cache.commit(finished(model, 1))


def test_when_the_context_is_reduced_the_cache_is_built_anew(model: Model) -> None:
    story = finished(model, 5)
    wanted = model.piece(5, query(CAPTIONS[0]))
    cache = model.language.new_cache(400)
    model.language.read(story, wanted, cache)
    kept = [story[0], story[1], story[4]]
    states = model.language.read(kept, wanted, cache)
    assert cache.pieces == [model.language.begin, *kept]
    np.testing.assert_allclose(states, read_everything(model, kept, wanted), atol=1e-4, rtol=0)


def test_the_exported_model_writes_its_cache_in_place(model: Model) -> None:
    session = model.language.session
    assert isinstance(session, OrtLanguageSession)
    assert session.shares_buffers
    dims = model.dims
    expected = 2 * dims.num_hidden_layers * dims.num_key_value_heads * 100 * dims.head_dim * 4
    assert model.language.new_cache(100).nbytes == expected


def concatenating_model() -> OrtLanguageSession:
    """Running sums instead of attention, but causal, and its cache grows by concatenation."""
    nodes = [
        helper.make_node("Unsqueeze", ["inputs_embeds", "one"], ["fresh"]),
        helper.make_node("Concat", ["past_key_values.0.key", "fresh"], ["present.0.key"], axis=2),
        helper.make_node("Identity", ["present.0.key"], ["present.0.value"]),
        helper.make_node("CumSum", ["present.0.key", "two"], ["sums"]),
        helper.make_node("Shape", ["past_key_values.0.value"], ["length"], start=2, end=3),
        helper.make_node("Slice", ["sums", "length", "most", "axis"], ["tail"]),
        helper.make_node("Squeeze", ["tail", "one"], ["last_hidden_state"]),
    ]
    constants = {"one": [1], "two": 2, "axis": [2], "most": [2**40]}
    initializers = [
        onnx.numpy_helper.from_array(np.array(v, dtype=np.int64), n) for n, v in constants.items()
    ]
    past, present = [1, 1, "past", 4], [1, 1, "total", 4]
    inputs = [
        helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, [1, "sequence", 4]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, [1, "total"]),
        *(
            helper.make_tensor_value_info(f"past_key_values.0.{k}", TensorProto.FLOAT, past)
            for k in ("key", "value")
        ),
    ]
    outputs = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [1, "sequence", 4]),
        *(
            helper.make_tensor_value_info(f"present.0.{k}", TensorProto.FLOAT, present)
            for k in ("key", "value")
        ),
    ]
    graph = helper.make_graph(nodes, "sums", inputs, outputs, initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = signature(Component.LANGUAGE_MODEL, Dimensions(8, 4, 8, 4, 4, 8, 4, 4, 1, 1, 4, 99, 1, 1))
    return OrtLanguageSession(Parts([lambda: session], [spec.name for spec in wanted.outputs]), wanted, "cpu")


def test_a_graph_that_concatenates_its_cache_is_read_through_copies() -> None:
    session = concatenating_model()
    assert not session.shares_buffers
    cache = KVCache(session.new_cache(50))
    tokens = np.random.default_rng(0).standard_normal((1, 9, 4)).astype(np.float32)
    cache.append(session, tokens[:, :3])
    cache.commit([Piece(0, (1, 2, 3))])
    cache.append(session, -tokens[:, :4])
    cache.rewind()
    states = cache.append(session, tokens[:, 3:])
    np.testing.assert_allclose(states, np.cumsum(tokens, 1)[:, 3:], atol=1e-5)
    assert np.array_equal(cache.to_host()["key.0"][0, 0], tokens[0, :3])
