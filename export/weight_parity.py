"""The beginning of the parity gate: every packed weight of a written graph, widened, against the one it was.

Knows how packed weights stand in a graph. A component's output hides a layer that is wrong by half in the
noise of 4 bits; its weights do not.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from storyv_lite.errors import ParityError
from storyv_lite.export.layers import attribute, is_layer
from storyv_lite.export.products import as_matrix
from storyv_lite.export.rounding import widen_blocks
from storyv_lite.export.verify import NO_NUMBER, Failure, compare

Array = NDArray[Any]
# Smallest signal-to-noise ratio of a layer's weights, in decibels, by bits. The default model has 18.9 and
# more in 4 bits (rounded by GPTQ) and 27.6 and more in 8 (the decoder's, with the reduced range).
LIMITS = {4: 8.0, 8: 22.0, 16: 50.0, 32: 100.0}


def check_weights(component: str, packed: onnx.ModelProto, wide: onnx.ModelProto) -> list[Failure]:
    """Every layer of `packed` whose weights are too far from those of `wide`.

    Raises `ParityError` when a layer is missing.
    """
    weights = {tensor.name: tensor for tensor in wide.graph.initializer}
    found = {node.name: node for node in packed.graph.node if node.name}
    failures = []
    for node in wide.graph.node:
        if not is_layer(node, weights):
            continue
        if node.name not in found:
            raise ParityError(f"`{component}` has lost its layer `{node.name}`")
        right = _matrix(
            node, numpy_helper.to_array(weights[node.input[0 if node.op_type == "Gather" else 1]])
        )
        value, bits = _widened(packed, found[node.name])
        figure, metric = "weight_snr_db", f"at `{node.name}`"
        if not (np.isfinite(value).all() and np.isfinite(right).all()):
            failures.append(Failure(component, f"{NO_NUMBER} `{node.name}`", 0.0, 0.0))
        elif value.shape != right.shape:
            failures.append(Failure(component, f"weights of another shape {metric}", 0.0, 0.0))
        elif not np.array_equal(value, right):  # a layer of zeros has no ratio
            if (ratio := compare(value, right).snr_db) < LIMITS[bits]:
                failures.append(Failure(component, f"{figure} {metric}", ratio, LIMITS[bits]))
    return failures


def _widened(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[Array, int]:
    """What a layer computes with, as `_matrix` gives it, and the bits it is stored in."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: maker for maker in model.graph.node for name in maker.output}

    def value(name: str) -> Array:
        if name in tensors:
            stored: Array = numpy_helper.to_array(tensors[name])
            return stored
        maker = makers[name]
        if maker.op_type == "Cast":
            widened: Array = value(maker.input[0]).astype(np.float32)
            return widened
        levels, scales = value(maker.input[0]).astype(np.float32), value(maker.input[1])
        axis = attribute(maker, "axis", 1)
        shape = [-1 if at == axis else 1 for at in range(levels.ndim)]
        wide: Array = levels * scales.reshape(shape)
        return wide

    if node.op_type == "MatMulNBits":
        bits = attribute(node, "bits", 4)
        return widen_blocks(value(node.input[1]), value(node.input[2]), bits, attribute(node, "K", 0)), bits
    name = node.input[0 if node.op_type == "Gather" else 1]
    maker = makers.get(name)
    weight: Array = value(name)
    bits = 8 * weight.itemsize if maker is None else 16 if maker.op_type == "Cast" else 8
    return _matrix(node, weight), bits


def _matrix(node: onnx.NodeProto, weight: Array) -> Array:
    if node.op_type == "Conv":
        return as_matrix(weight)
    return weight.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight
