"""The gate looks at every layer's weights: one wrong scale, one swapped weight, one NaN is named."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.errors import ParityError
from storyv_lite.export.quantize import quantize
from storyv_lite.export.verify import refuse
from storyv_lite.export.weight_parity import check_weights
from storyv_lite.quantization import Method, QuantScheme

METHODS = (Method.WIDE, Method.HALF, Method.WEIGHT_ONLY, Method.BLOCK8, Method.BLOCK4)


def network() -> onnx.ModelProto:
    """Two products, a linear layer with a bias and a convolution, all of 64 channels."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="/net/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name="/net/first/MatMul"),
        helper.make_node("MatMul", ["b", "w2"], ["c"], name="/net/second/MatMul"),
    ]
    shapes = {"w0": (64, 64, 3, 3), "w1": (64, 64), "w2": (64, 64)}
    tensors = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    values = [helper.make_tensor_value_info(name, 1, ["batch", 64, 8, 64]) for name in ("x", "c")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def change(model: onnx.ModelProto, name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(make(value.copy()).astype(value.dtype), name))


@pytest.mark.parametrize("method", METHODS)
def test_weights_as_they_are_packed_pass(method: Method) -> None:
    assert not check_weights("net", quantize(network(), QuantScheme("", method)).model, network())


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_zeros_passes(method: Method) -> None:
    model = network()
    change(model, "w1", np.zeros_like)
    assert not check_weights("net", quantize(model, QuantScheme("", method)).model, model)


@pytest.mark.parametrize("method", [Method.WEIGHT_ONLY, Method.BLOCK8, Method.BLOCK4])
def test_a_wrong_scale_in_one_layer_is_named(method: Method) -> None:
    packed = quantize(network(), QuantScheme("", method)).model
    scale = "w1.127.scale" if method is Method.WEIGHT_ONLY else "w1.scales.f16"
    change(packed, scale, lambda scales: scales * 1.5)
    with pytest.raises(ParityError, match=r"`net` has weight_snr_db at `/net/first/MatMul` [56].*is needed"):
        refuse(check_weights("net", packed, network()))


@pytest.mark.parametrize("method", METHODS)
def test_two_swapped_weights_are_named(method: Method) -> None:
    swapped = network()
    swapped.graph.initializer[1].name, swapped.graph.initializer[2].name = "w2", "w1"
    packed = quantize(swapped, QuantScheme("", method)).model
    failures = check_weights("net", packed, network())
    assert ["first" in failures[0].metric, "second" in failures[1].metric, len(failures)] == [True, True, 2]


@pytest.mark.parametrize("method", [Method.HALF, Method.WEIGHT_ONLY, Method.BLOCK4])
def test_not_a_number_in_one_layer_is_named(method: Method) -> None:
    packed = quantize(network(), QuantScheme("", method)).model
    name = {Method.HALF: "w2.wide.f16", Method.WEIGHT_ONLY: "w2.127.scale", Method.BLOCK4: "w2.scales.f16"}
    change(packed, name[method], lambda values: np.where(values == values.max(), np.nan, values))
    with pytest.raises(ParityError, match="`net` has NaN or infinity at `/net/second/MatMul`"):
        refuse(check_weights("net", packed, network()))


@pytest.mark.parametrize("method", [Method.WEIGHT_ONLY, Method.BLOCK4])
def test_weights_that_were_no_numbers_before_do_not_pass(method: Method) -> None:
    packed, right = quantize(network(), QuantScheme("", method)).model, network()
    change(right, "w1", lambda values: np.where(values == values.max(), np.nan, values))
    with pytest.raises(ParityError, match="`net` has NaN or infinity at `/net/first/MatMul`"):
        refuse(check_weights("net", packed, right))
