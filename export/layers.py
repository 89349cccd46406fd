"""The layers of a graph: which nodes hold weights, and what a scheme can do with each of them.

Knows ONNX nodes and what ONNX Runtime's kernels take; how a weight is packed is `rounding`'s business.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from storyv_lite.export.products import as_matrix, is_product
from storyv_lite.export.rounding import blocks, per_channel, widen_blocks
from storyv_lite.quantization import STORAGE, Method, QuantScheme, Rounding

Array = NDArray[Any]

LAYERS = ("Conv", "MatMul", "Gemm", "Gather")
PRODUCTS = ("MatMul", "Gemm")
BLOCKS = (Method.BLOCK4, Method.BLOCK8)
SMALLEST = 2048  # weights; smaller tensors are not worth a scale
LARGEST_HALF = float(np.finfo(np.float16).max)


def static_tensors(model: onnx.ModelProto, scheme: QuantScheme) -> list[str]:
    """The activations whose ranges `quantize` needs: inputs of static layers, and outputs of convolutions."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if is_layer(node, weights) and node.op_type != "Gather" and scheme.method(node.name) is Method.STATIC:
            names[node.input[0]] = None
            if node.op_type == "Conv":
                names[node.output[0]] = None
    return list(names)


def moment_tensors(model: onnx.ModelProto, scheme: QuantScheme) -> list[str]:
    """The activations whose second moments `quantize` needs: inputs of products rounded by GPTQ."""
    if scheme.rounding is not Rounding.GPTQ:
        return []
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [
        node.input[0]
        for node in model.graph.node
        if is_layer(node, weights)
        and node.op_type in PRODUCTS
        and choose_method(node, numpy_helper.to_array(weights[node.input[1]]), scheme)[0] in BLOCKS
    ]
    return list(dict.fromkeys(names))


def is_layer(node: onnx.NodeProto, weights: Mapping[str, Any] | set[str]) -> bool:
    """A node of `LAYERS` whose weight is a constant: attention's products of activations are none."""
    if node.op_type == "Gather":
        return node.input[0] in weights and not attribute(node, "axis", 0)
    return node.op_type in LAYERS and node.input[1] in weights


def choose_method(node: onnx.NodeProto, weight: Array, scheme: QuantScheme) -> tuple[Method, str]:
    """What is done to one layer, and why not what the scheme does by default."""
    method, reason = scheme.choose(node.name)
    if method is Method.WIDE:
        return method, reason
    if weight.size < SMALLEST:
        return Method.WIDE, f"fewer than {SMALLEST} weights"
    if method in (Method.HALF, *BLOCKS) and np.abs(weight).max() > LARGEST_HALF:
        return Method.WIDE, "weights beyond the range of 16 bits"
    if method is Method.HALF:
        return method, reason
    if node.op_type == "Gather":
        return Method.WEIGHT_ONLY, "rows are taken from it" if method in BLOCKS else reason
    if method in BLOCKS and not _is_blockwise(node):
        return Method.WEIGHT_ONLY, "cannot be written as one product"
    return method, reason


def _is_blockwise(node: onnx.NodeProto) -> bool:
    """Whether MatMulNBits can do what this layer does."""
    if node.op_type == "Gemm":
        factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
        return not attribute(node, "transA", 0) and all(factor == 1.0 for factor in factors)
    return node.op_type == "MatMul" or is_product(node)


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    if node.op_type == "MatMul":
        return 1
    return 1 if node.op_type == "Gemm" and not attribute(node, "transB", 0) else 0


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((found.i for found in node.attribute if found.name == name), default)


def methods_of_layers(model: onnx.ModelProto, method: Method) -> list[tuple[str, str, Method]]:
    """Of every layer its path, the name of its weight, and what storing by `method` comes to for it."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    scheme, found = QuantScheme("", method), []
    for node in model.graph.node:
        if is_layer(node, weights):
            name = node.input[0 if node.op_type == "Gather" else 1]
            weight = numpy_helper.to_array(weights[name])
            found.append((node.name, name, choose_method(node, weight, scheme)[0]))
    return found


def rounded_weight(node: onnx.NodeProto, weight: Array, method: Method) -> tuple[Array, int]:
    """A layer's weight after a round trip through `method`, rounded to nearest, and its bytes with scales."""
    if method is Method.HALF:
        half = weight.astype(np.float16)
        return half.astype(np.float32), half.nbytes
    if method in BLOCKS:
        bits, turned = STORAGE[method].bits, node.op_type == "Gemm" and attribute(node, "transB", 0)
        matrix = as_matrix(weight) if node.op_type == "Conv" else weight.T if turned else weight
        packed, scales = blocks(matrix, bits)
        wide = widen_blocks(packed, scales, bits, len(matrix))
        if node.op_type == "Conv":
            kernel = (*weight.shape[2:], weight.shape[1], weight.shape[0])
            wide = wide.reshape(kernel).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(wide.T if turned else wide), packed.nbytes + scales.nbytes
    axis = output_axis(node)
    levels, scales = per_channel(weight, axis, -127, 127)
    shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
    return levels * scales.reshape(shape), levels.nbytes + scales.nbytes
