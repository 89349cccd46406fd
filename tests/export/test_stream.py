"""Export by parts: the numbers of the export in memory, also after a kill, and never half a part."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BundleError, ParityError
from storyv_lite.export import rounding
from storyv_lite.export.capture import GRAPH, capture, clean, load_graph, save_graph
from storyv_lite.export.halve import halve
from storyv_lite.export.quantize import quantize
from storyv_lite.export.simplify import shorten
from storyv_lite.export.specs import GRAPHS, dummy_inputs
from storyv_lite.export.stream import stream_component
from storyv_lite.export.streamed import write_table
from storyv_lite.export.verify import compare
from storyv_lite.manifest import Variant
from storyv_lite.modeling.components import build
from storyv_lite.quantization import DRAWING, FP16, FP32, SCHEMES, Method, QuantScheme

INT4 = QuantScheme("int4-block32", Method.BLOCK4, accuracy_level=4)
INT8 = QuantScheme("int8-weights", Method.WEIGHT_ONLY)
LANGUAGE = Component.LANGUAGE_MODEL


@pytest.fixture(scope="module")
def dims(tiny_bundle: Path) -> Dimensions:
    return Bundle.open(tiny_bundle, verify=False).model.dimensions


def stream(
    component: Component,
    checkpoint: Path,
    dims: Dimensions,
    scheme: QuantScheme,
    place: Path,
    part_bytes: int | None = None,
    **more: Any,
) -> Variant:
    return stream_component(
        component, checkpoint, dims, scheme, place / "bundle", place / "records", part_bytes, **more
    )


@pytest.mark.parametrize("scheme", [FP32, FP16, INT8, INT4], ids=lambda scheme: scheme.name)
def test_a_streamed_language_model_is_bit_for_bit_the_one_exported_in_memory(
    scheme: QuantScheme, tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    wide = capture(build(LANGUAGE, tiny_checkpoint, dims), LANGUAGE, dims)
    save_graph(shorten(quantize(wide, scheme).model), tmp_path / "memory")
    stream(LANGUAGE, tiny_checkpoint, dims, scheme, tmp_path)
    streamed, memory = (clean(load_graph(tmp_path / name)) for name in (f"bundle/{LANGUAGE}", "memory"))
    assert streamed.SerializeToString(deterministic=True) == memory.SerializeToString(deterministic=True)


def test_parts_run_one_after_another_answer_as_one_graph_does(
    tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    whole = stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path / "whole")
    parts = stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path / "parts", 16_000)
    assert len(whole.parts) == 1 < len(parts.parts)
    random = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        "inputs_embeds": random.standard_normal((1, 3, dims.hidden_size), dtype=np.float32),
        "attention_mask": np.ones((1, 8), np.int64),
    }
    for layer in range(dims.num_hidden_layers):
        for name in ("key", "value"):
            shape = (1, dims.num_key_value_heads, 5, dims.head_dim)
            feeds[f"past_key_values.{layer}.{name}"] = random.standard_normal(shape, dtype=np.float32)
    one, several = (
        run(tmp_path / name / "bundle", [part.file for part in variant.parts], feeds)
        for name, variant in (("whole", whole), ("parts", parts))
    )
    for name in one:
        np.testing.assert_array_equal(several[name], one[name], err_msg=name)


def test_a_part_holds_no_more_weights_than_it_may(
    tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    parts = stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path, 16_000).parts
    largest = 3 * dims.hidden_size * dims.hidden_size * 4.5 / 8
    assert all(part.bytes < max(16_000, largest) + 32_000 for part in parts), (
        "pages and graphs beside weights"
    )


def run(folder: Path, files: list[str], feeds: dict[str, Any]) -> dict[str, Any]:
    """What parts in order answer, inner tensors included."""
    known, answers = dict(feeds), dict[str, Any]()
    for file in files:
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_outputs()]
        taken = {value.name: known[value.name] for value in session.get_inputs()}
        answers |= dict(zip(names, session.run(names, taken), strict=True))
        known |= answers
    return answers


def test_a_kill_loses_only_the_part_that_was_being_written(
    tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path / "unbroken", 16_000)
    told: list[str] = []

    def killed(message: str) -> None:
        told.append(message)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path / "killed", 16_000, progress=killed)
    torn = tmp_path / "killed" / "bundle" / LANGUAGE / "part-02.onnx.data"
    torn.write_bytes(b"half a part")
    again = stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path / "killed", 16_000, progress=told.append)
    assert again == unbroken, "every hash is that of an unbroken export"
    assert len(told) == 1 + len(unbroken.parts), "the two finished parts were not made again"


def test_weights_that_do_not_survive_are_refused(
    tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turned(*given: Any) -> tuple[Any, Any]:
        packed, scales = rounding.blocks(*given)
        return packed ^ 0x88, scales

    monkeypatch.setattr("storyv_lite.export.quantize.blocks", turned)
    with pytest.raises(ParityError, match="`language_model` has weight_snr_db at `/layers.0") as refusal:
        stream(LANGUAGE, tiny_checkpoint, dims, INT4, tmp_path)
    assert refusal.value.hint == "store it wider: `--scheme language_model=fp16`"
    assert not list((tmp_path / "records").iterdir())


def changed(
    checkpoint: Path, component: Component, name: str, value: float, place: Path, count: int = 1
) -> Path:
    """A copy of a checkpoint in which the first `count` numbers of one tensor are `value`."""
    folder = shutil.copytree(checkpoint, place / "changed")
    file = folder / component / "model.safetensors"
    tensors = load_file(file)
    tensors[name].reshape(-1)[:count] = value
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("scheme", [FP32, FP16, INT8, INT4], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(
    ("name", "value"), [("model.layers.0.mlp.down_proj.weight", np.nan), ("model.norm.weight", -np.inf)]
)
def test_a_weight_that_is_no_number_is_told_with_its_file_whatever_it_is_stored_as(
    scheme: QuantScheme, name: str, value: float, tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    broken = changed(tiny_checkpoint, LANGUAGE, name, value, tmp_path)
    told = f"language_model/model.safetensors` has NaN or infinity in `{name}`"
    with pytest.raises(BundleError, match=told) as refusal:
        stream(LANGUAGE, broken, dims, scheme, tmp_path)
    assert "storyv-lite train" in refusal.value.hint
    assert not list((tmp_path / "records").iterdir())


def test_a_token_table_with_something_that_is_no_number_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = changed(tiny_checkpoint, LANGUAGE, "model.embed_tokens.weight", np.nan, tmp_path)
    with pytest.raises(BundleError, match="has NaN or infinity in `model.embed_tokens.weight`"):
        write_table(broken, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("value", "told"),
    [(1e5, "has NaN or infinity at `.*conv_in.bias`"), (3e-8, "has weight_snr_db at `.*conv_in.bias`")],
)
def test_weights_that_16_bits_cannot_hold_are_refused_with_a_scheme_that_does(
    value: float, told: str, tiny_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    folder = changed(tiny_checkpoint, Component.UNET, "conv_in.bias", value, tmp_path, 1000)
    half = SCHEMES["half"][Component.UNET]
    with pytest.raises(ParityError, match=f"`unet` {told}") as refusal:
        stream(Component.UNET, folder, dims, half, tmp_path)
    assert refusal.value.hint == "store it wider: `--scheme unet=fp32`"
    wide = SCHEMES["fp32"][Component.UNET]
    assert stream(Component.UNET, folder, dims, wide, tmp_path / "wide").parts


@pytest.fixture(scope="module")
def rough_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with noise on all weights, so that no two tensors are equal."""
    folder = tmp_path_factory.mktemp("rough") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    for index, file in enumerate(sorted(folder.glob("*/model.safetensors"))):
        random = np.random.default_rng(index)
        noisy = {
            name: tensor + 0.05 * random.standard_normal(tensor.shape, dtype=np.float32)
            for name, tensor in load_file(file).items()
        }
        save_file(noisy, file)
    return folder


@pytest.mark.parametrize("component", [c for c in GRAPHS if c is not Component.LANGUAGE_MODEL])
def test_a_streamed_component_has_the_weights_and_the_answers_of_the_one_exported_in_memory(
    component: Component, rough_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    wide = capture(build(component, rough_checkpoint, dims), component, dims)
    scheme = replace(INT4, accuracy_level=0)  # where activations are rounded, the last bit of one shows
    save_graph(shorten(quantize(wide, scheme).model), tmp_path / "memory")
    variant = stream(component, rough_checkpoint, dims, scheme, tmp_path)
    streamed, memory = load_graph(tmp_path / "bundle" / component), load_graph(tmp_path / "memory")
    assert tensors(streamed) == tensors(memory)
    wanted = signature(component, dims)
    feeds = {s.name: t.numpy() for s, t in zip(wanted.inputs, dummy_inputs(wanted), strict=True)}
    name = wanted.outputs[0].name
    right = run(tmp_path / "memory", [GRAPH], feeds)[name]
    np.testing.assert_allclose(
        run(tmp_path / "bundle", [part.file for part in variant.parts], feeds)[name], right, atol=1e-4
    )


@pytest.mark.parametrize("component", DRAWING)
def test_what_draws_is_streamed_in_16_bits_as_an_export_in_memory_writes_it(
    component: Component, rough_checkpoint: Path, dims: Dimensions, tmp_path: Path
) -> None:
    half = SCHEMES["half"][component]
    wide = capture(build(component, rough_checkpoint, dims), component, dims)
    save_graph(shorten(halve(wide)), tmp_path / "memory")
    variant = stream(component, rough_checkpoint, dims, half, tmp_path)
    streamed, memory = load_graph(tmp_path / "bundle" / component), load_graph(tmp_path / "memory")
    assert tensors(streamed) == tensors(memory)
    assert {node.domain for node in streamed.graph.node} == {""}, "which is what TensorRT reads"
    assert variant.weights["default"] == "half" and variant.parity["weights_16_bits_snr_db"] > 60
    wanted = signature(component, dims)
    feeds = {s.name: t.numpy() for s, t in zip(wanted.inputs, dummy_inputs(wanted), strict=True)}
    (name,) = (spec.name for spec in wanted.outputs)
    right = run(tmp_path / "memory", [GRAPH], feeds)[name]
    found = run(tmp_path / "bundle", [part.file for part in variant.parts], feeds)[name]
    assert compare(found, right).snr_db > 50


def tensors(model: onnx.ModelProto) -> Counter[bytes]:
    """Values of all floating-point and packed tensors, in whatever order a graph has them."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    return Counter(
        numpy_helper.to_array(tensor).tobytes()
        for tensor in model.graph.initializer
        if tensor.data_type in kinds and np.prod(tensor.dims) > 4
    )
