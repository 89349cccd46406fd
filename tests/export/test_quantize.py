"""Quantized layers: what the numbers are, what they compute, and that no processor can overflow on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from storyv_lite.components import Component
from storyv_lite.coverage import REST, coverage_of, shares
from storyv_lite.errors import ConfigError, ParityError
from storyv_lite.export.calibrate import choose_range
from storyv_lite.export.capture import load_graph
from storyv_lite.export.layers import methods_of_layers, moment_tensors, rounded_weight, static_tensors
from storyv_lite.export.quantize import assert_cannot_saturate, quantize
from storyv_lite.export.rounding import (
    activation_scale,
    blocks,
    per_channel,
    second_moments,
    widen_blocks,
)
from storyv_lite.export.specs import GRAPHS
from storyv_lite.export.verify import compare
from storyv_lite.quantization import REDUCED_RANGE, Method, QuantScheme, Rounding, Rule, plan

STATIC = QuantScheme("test", Method.STATIC)


def convolution(size: int = 32) -> onnx.ModelProto:
    """One 3x3 convolution with a bias, (batch, size, 8, 8) to the same."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(size, size, 3, 3)).astype(np.float32)
    bias = random.normal(size=size).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="/net/conv/Conv", pads=[1, 1, 1, 1])
    values = [helper.make_tensor_value_info(n, 1, ["batch", size, 8, 8]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def product(rows: int = 70, columns: int = 64) -> onnx.ModelProto:
    weight = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/net/linear/MatMul")
    x = helper.make_tensor_value_info("x", 1, ["batch", rows])
    y = helper.make_tensor_value_info("y", 1, ["batch", columns])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray, exact: bool = False) -> np.ndarray:
    """What a session answers; an `exact` one takes no kernel that rounds activations."""
    options = onnxruntime.SessionOptions()
    if exact:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": x})[0]
    return answer


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_in_blocks_answers_as_with_the_same_weights_widened(
    kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], bias: bool
) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-7, 8, size=(48, 64, *kernel)).astype(np.float32)  # 4 bits hold these exactly
    weight[:, ::32] = -8  # the largest of every block
    tensors = [numpy_helper.from_array(weight, "w")]
    if bias:
        tensors.append(numpy_helper.from_array(random.normal(size=48).astype(np.float32), "b"))
    inputs = ["x", *(tensor.name for tensor in tensors)]
    shape = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    node = helper.make_node("Conv", inputs, ["y"], name="/net/conv/Conv", **shape)
    values = [helper.make_tensor_value_info(n, 1, ["b", c, "h", "w"]) for n, c in (("x", 64), ("y", 48))]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    packed = quantize(model, QuantScheme("test", Method.BLOCK4)).model
    assert "Conv" not in {node.op_type for node in packed.graph.node}
    assert packed.ByteSize() < model.ByteSize() / 4
    for size in (8, 9):
        x = random.normal(size=(2, 64, size, size + 3)).astype(np.float32)
        np.testing.assert_allclose(run(packed, x), run(model, x), atol=2e-3)


def test_a_grouped_convolution_keeps_eight_bits() -> None:
    model = convolution()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((32, 8, 3, 3), np.float32), "w"))
    model.graph.node[0].attribute.append(helper.make_attribute("group", 4))
    packed = quantize(model, QuantScheme("test", Method.BLOCK4)).model
    assert [node.op_type for node in packed.graph.node] == ["DequantizeLinear", "Conv"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_linear_layer_with_a_bias_is_stored_in_blocks(transposed: int) -> None:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(96, 96)).astype(np.float32), np.ones(96, np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="/net/linear/Gemm", transB=transposed)
    values = [helper.make_tensor_value_info(n, 1, ["batch", 96]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    graph = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    packed, x = quantize(model, QuantScheme("test", Method.BLOCK4)).model, np.eye(96, dtype=np.float32)[:5]
    assert [node.op_type for node in packed.graph.node] == ["Cast", "MatMulNBits"]
    assert compare(run(packed, x), run(model, x)).snr_db > 18


def test_static_layers_answer_nearly_the_same() -> None:
    x = np.random.default_rng(2).normal(size=(2, 32, 8, 8)).astype(np.float32)
    model = convolution()
    wide = run(model, x)
    ranges = {"x": choose_range(x.ravel()), "y": choose_range(wide.ravel())}
    assert static_tensors(model, STATIC) == ["x", "y"]
    assert compare(run(quantize(model, STATIC, ranges).model, x), wide).snr_db > 30


@pytest.mark.parametrize(
    ("method", "level", "limit"),
    [
        (Method.BLOCK8, 0, 44.0),
        (Method.BLOCK4, 0, 18.0),
        (Method.BLOCK4, 4, 18.0),
        (Method.WEIGHT_ONLY, 0, 40.0),
    ],
)
def test_blocks_and_weights_answer_nearly_the_same(method: Method, level: int, limit: float) -> None:
    x = np.random.default_rng(2).normal(size=(5, 70)).astype(np.float32)
    scheme = QuantScheme("test", method, accuracy_level=level)
    assert compare(run(quantize(product(), scheme).model, x), run(product(), x)).snr_db > limit


@pytest.mark.parametrize("make", [convolution, product])
def test_weights_in_16_bits_take_half_the_bytes_and_answer_as_16_bit_floats_do(
    make: Callable[..., Any],
) -> None:
    wide, scheme = make(), QuantScheme("test", Method.HALF)
    shape = (2, 32, 8, 8) if make is convolution else (5, 70)
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    narrow = quantize(wide, scheme).model
    weights = [t for t in narrow.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(weights) == 1 and narrow.ByteSize() < 0.6 * wide.ByteSize()
    assert 60 < compare(run(narrow, x), run(wide, x)).snr_db < 100


def test_a_weight_that_16_bits_cannot_hold_stays_wide() -> None:
    model, scheme = product(), QuantScheme("test", Method.HALF)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[3, 3] = 1e5
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert np.isfinite(run(quantize(model, scheme).model, np.eye(70, dtype=np.float32))).all()


def test_block_weights_meet_the_largest_weight_exactly() -> None:
    weight = np.linspace(-1, 3, 64, dtype=np.float32).reshape(32, 2)
    packed, scales = blocks(weight, 8)
    restored = (packed.astype(np.float32) - 128) * scales[..., None]
    assert packed.shape == (2, 1, 32) and restored.max() == np.float32(3)
    assert blocks(weight, 4)[0].shape == (2, 1, 16)


def test_rounding_that_compensates_answers_closer_on_inputs_that_go_together() -> None:
    random = np.random.default_rng(5)
    rows = (random.normal(size=(400, 6)) @ random.normal(size=(6, 70))).astype(np.float32)
    rows += 0.1 * random.normal(size=rows.shape).astype(np.float32)
    model, wide = product(), run(product(), rows[:100])
    errors = {}
    for rounding in Rounding:
        scheme = QuantScheme("test", Method.BLOCK4, rounding=rounding)
        assert moment_tensors(model, scheme) == (["x"] if rounding is Rounding.GPTQ else [])
        quantized = quantize(model, scheme, moments={"x": second_moments(rows[100:])})
        assert quantized.stored[0].rounding is rounding
        errors[rounding] = compare(run(quantized.model, rows[:100]), wide).snr_db
    assert errors[Rounding.GPTQ] > errors[Rounding.NEAREST] + 2


def test_widened_blocks_are_what_the_graph_computes_with() -> None:
    weight = numpy_helper.to_array(product().graph.initializer[0])
    x = np.eye(70, dtype=np.float32)
    for bits, method in ((4, Method.BLOCK4), (8, Method.BLOCK8)):
        answer = run(quantize(product(), QuantScheme("test", method)).model, x)
        assert np.allclose(answer, widen_blocks(*blocks(weight, bits), bits, 70), atol=1e-6)


@pytest.mark.parametrize("make", [convolution, product])
@pytest.mark.parametrize("method", [Method.BLOCK4, Method.WEIGHT_ONLY, Method.HALF])
def test_a_rounded_weight_is_what_the_packed_graph_computes_with(
    make: Callable[[], onnx.ModelProto], method: Method
) -> None:
    model = make()
    shape = (2, 32, 8, 8) if make is convolution else (5, 70)
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    quantized = quantize(model, QuantScheme("test", method))
    ((_, _, chosen),), tensor = methods_of_layers(model, method), model.graph.initializer[0]
    value, size = rounded_weight(model.graph.node[0], numpy_helper.to_array(tensor), chosen)
    assert chosen is method and 0 <= quantized.stored[0].bytes - size < 2000  # and where slices begin and end
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    assert compare(run(quantized.model, x, exact=True), run(model, x)).snr_db > 90


def test_every_weight_is_counted_once_and_what_stayed_wide_has_a_reason() -> None:
    model = product()
    scheme = QuantScheme("test", Method.BLOCK4, (Rule("*linear*", Method.WEIGHT_ONLY, "it is looked at"),))
    for used, bits in (
        (scheme, 8),
        (QuantScheme("test", Method.BLOCK4), 4),
        (QuantScheme("test", Method.WIDE), 32),
    ):
        quantized = quantize(model, used)
        entry = coverage_of(quantized.stored, used)
        (group,) = [group for group in entry["groups"] if group["parameters"]]
        assert group["parameters"] == 70 * 64 and group["bits"] == bits
        tensors = quantized.model.graph.initializer
        assert sum(g["bytes"] for g in entry["groups"]) == sum(
            numpy_helper.to_array(t).nbytes for t in tensors
        )
        assert [share.percent_of_parameters for share in shares([entry]) if share.parameters] == [100.0]
        reasons = {wide["layer"]: wide["reason"] for wide in entry["wide"]}
        assert reasons.pop(REST) and reasons == (
            {"/net/linear/MatMul": "it is looked at"} if bits == 8 else {}
        )


def test_reduced_weights_cannot_overflow_a_saturating_pair_sum() -> None:
    weight = np.random.default_rng(3).normal(size=(16, 8, 3, 3)) * 1e3
    packed, _ = per_channel(weight, 0, *REDUCED_RANGE)
    assert packed.min() >= REDUCED_RANGE[0] and packed.max() <= REDUCED_RANGE[1]
    pairs = np.int64(255) * 2 * np.array(REDUCED_RANGE)
    assert pairs.min() >= np.iinfo(np.int16).min and pairs.max() <= np.iinfo(np.int16).max


def test_every_static_layer_of_a_bundle_stays_in_the_reduced_range(tiny_bundle_int8: Path) -> None:
    layers = {c: assert_cannot_saturate(load_graph(tiny_bundle_int8 / c)) for c in GRAPHS}
    assert layers[Component.UNET] > 30


def test_a_weight_outside_the_reduced_range_is_refused(tiny_bundle_int8: Path) -> None:
    model = load_graph(tiny_bundle_int8 / Component.UNET)
    makers = {name: node for node in model.graph.node for name in node.output}
    layer = next(node for node in model.graph.node if node.op_type == "Conv" and "resnets" in node.name)
    packed = makers[layer.input[1]].input[0]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == packed)
    weight = numpy_helper.to_array(tensor).copy()
    weight.ravel()[0] = 127
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    with pytest.raises(ParityError, match="to 127"):
        assert_cannot_saturate(model)


def test_first_and_last_layers_keep_wide_activations(tiny_bundle_int8: Path) -> None:
    model = load_graph(tiny_bundle_int8 / Component.UNET)
    makers = {name: node for node in model.graph.node for name in node.output}
    convolutions = {node.name: node for node in model.graph.node if node.op_type == "Conv"}
    rounded = {
        name
        for name, node in convolutions.items()
        if node.input[0] in makers and makers[node.input[0]].op_type == "DequantizeLinear"
    }
    assert any("resnets" in name for name in rounded)
    assert not [name for name in rounded if "conv_in" in name or "conv_out" in name]


def test_zero_is_exact_whatever_the_range() -> None:
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)):
        scale, zero = activation_scale(low, high)
        assert 0 <= zero <= 255 and scale > 0
        assert scale * (255 - float(zero)) >= max(high, 0.0) - scale


def test_one_outlier_does_not_set_the_range() -> None:
    values = np.append(np.random.default_rng(0).normal(size=200_000), 12.0)
    assert choose_range(values)[1] < 11.0
    assert choose_range(np.linspace(-1, 1, 1000)) == (-1.0, 1.0)


def test_the_first_matching_rule_wins() -> None:
    rules = (Rule("*/conv_in/*", Method.WIDE), Rule("*conv*", Method.BLOCK8))
    scheme = QuantScheme("test", Method.STATIC, rules)
    names = ("/unet/conv_in/Conv", "/unet/conv_out/Conv", "/unet/to_q/MatMul")
    assert [scheme.method(name) for name in names] == [Method.WIDE, Method.BLOCK8, Method.STATIC]


def test_an_unknown_scheme_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="`int3` is no quantization scheme; there are fp32, fp16, int8, int4"
    ):
        plan("int3")


def test_single_components_are_stored_as_asked_and_the_rest_as_the_preset_says() -> None:
    def names(text: str) -> dict[str, str]:
        return {str(component): scheme.name for component, scheme in plan(text).items()}

    assert {c for c, name in names("int4").items() if name == "int8"} == {"unet", "vae_decoder"}
    assert names("int4,vae=fp32") == {**names("int4"), "vae_decoder": "fp32"}
    assert names("unet=int4") == {**names("int8"), "unet": "int4-block32"}
    assert names("int4, llm=int8,llm=fp32 ")["language_model"] == "fp32"


@pytest.mark.parametrize("text", ["lmm=int4", "token_embedding=int8", "=int4x", "unet=", "unet"])
def test_a_scheme_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="there are"):
        plan(text)


def test_the_manifest_tells_the_size_on_disk(tiny_bundle: Path, tiny_bundle_int8: Path) -> None:
    sizes = []
    for bundle in (tiny_bundle, tiny_bundle_int8):
        manifest = json.loads((bundle / "manifest.json").read_text())
        for name, record in manifest["components"].items():
            files = [file.stat().st_size for file in (bundle / name).iterdir()]
            assert record["bytes"] == sum(files) == sum(p["bytes"] for p in record["variants"][0]["parts"])
        sizes.append(manifest["components"]["unet"]["bytes"])
    assert sizes[1] < 0.4 * sizes[0]
