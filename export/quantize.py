"""Applies a quantization scheme to a graph: weights are packed here, once, away from the device.

Knows how ONNX Runtime wants quantized layers written (QuantizeLinear / DequantizeLinear pairs around
convolutions and products, MatMulNBits for blocks), not which layer gets which method.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.errors import ParityError
from storyv_lite.export.products import Patches, as_matrix, is_product
from storyv_lite.quantization import BLOCK_SIZE, REDUCED_RANGE, Method, QuantScheme

Array = NDArray[Any]
Ranges = Mapping[str, tuple[float, float]]  # tensor name to smallest and largest value

LAYERS = ("Conv", "MatMul", "Gemm", "Gather")
SMALLEST = 2048  # weights; smaller tensors are not worth a scale
LARGEST_HALF = float(np.finfo(np.float16).max)


def quantize(model: onnx.ModelProto, scheme: QuantScheme, ranges: Ranges | None = None) -> onnx.ModelProto:
    """A copy of `model` with every layer stored as `scheme` says.

    `ranges` are needed for the tensors that `static_tensors` names. Raises KeyError when one is missing.
    """
    return _Quantizer(model, scheme, ranges or {}).run()


def static_tensors(model: onnx.ModelProto, scheme: QuantScheme) -> list[str]:
    """The activations whose ranges `quantize` needs: inputs of static layers, and outputs of convolutions."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if _is_layer(node, weights) and _method(node, scheme) is Method.STATIC:
            names[node.input[0]] = None
            if node.op_type == "Conv":
                names[node.output[0]] = None
    return list(names)


def assert_cannot_saturate(model: onnx.ModelProto) -> int:
    """Prove by ranges that no 8-bit layer can overflow 16-bit sums; returns how many layers were looked at.

    Raises `ParityError` naming a layer whose weights leave the reduced range.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    seen = 0
    for node in model.graph.node:
        sources = [makers.get(name) for name in node.input[:2]]
        if node.op_type not in LAYERS or any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        weight = numpy_helper.to_array(tensors[sources[1].input[0]])  # type: ignore[union-attr]
        low, high = int(weight.min()), int(weight.max())
        if low < REDUCED_RANGE[0] or high > REDUCED_RANGE[1]:
            raise ParityError(
                f"`{node.name}` has 8-bit weights from {low} to {high}; "
                f"{REDUCED_RANGE[0]} to {REDUCED_RANGE[1]} are needed, or old processors saturate"
            )
        seen += 1
    return seen


def per_channel(weight: Array, axis: int, low: int, high: int) -> tuple[Array, Array]:
    """Symmetric 8-bit weights and one float32 scale per index of `axis`."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest = np.abs(weight).max(axis=others)
    scale = np.where(largest > 0, largest / min(-low, high), 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.clip(np.rint(weight / scale.reshape(shape)), low, high).astype(np.int8), scale


def activation_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of unsigned 8-bit values that hold [low, high] and exactly zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max((high - low) / 255.0, 1e-8))
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def blocks(weight: Array, bits: int) -> tuple[Array, Array]:
    """Pack a product's weight (K, N) for MatMulNBits: bytes (N, K/32, 32 * bits / 8) and scales (N, K/32).

    Symmetric around the middle of the unsigned range; each block's largest weight is met exactly.
    """
    rows = np.ascontiguousarray(weight.T, dtype=np.float32)  # (N, K)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % BLOCK_SIZE)))
    grouped = rows.reshape(rows.shape[0], -1, BLOCK_SIZE)
    middle = 1 << (bits - 1)
    index = np.abs(grouped).argmax(axis=2, keepdims=True)
    extreme = np.take_along_axis(grouped, index, axis=2)
    scales = np.where(extreme == 0, 1.0, extreme / -middle).astype(np.float32)
    packed = np.clip(np.rint(grouped / scales) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        packed = packed[..., 0::2] | (packed[..., 1::2] << 4)
    return packed, scales[..., 0]


class _Quantizer:
    """One pass over a graph's nodes; holds what several layers share."""

    def __init__(self, model: onnx.ModelProto, scheme: QuantScheme, ranges: Ranges) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.scheme, self.ranges = scheme, ranges
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.added: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()

    def run(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            self.layer(node) if _is_layer(node, self.weights) else self.nodes.append(node)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *self.added.values()])
        domains = {node.domain for node in self.nodes} - {opset.domain for opset in self.model.opset_import}
        if "com.microsoft" in domains:
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return self.model

    def layer(self, node: onnx.NodeProto) -> None:
        method, at = _method(node, self.scheme), 0 if node.op_type == "Gather" else 1
        weight = numpy_helper.to_array(self.weights[node.input[at]])
        if method is Method.WIDE or weight.size < SMALLEST:
            self.nodes.append(node)
        elif method in (Method.BLOCK4, Method.BLOCK8):
            self.block(node, weight, 4 if method is Method.BLOCK4 else 8)
        elif method is Method.STATIC:
            self.static(node, weight)
        elif method is Method.HALF and np.abs(weight).max() > LARGEST_HALF:
            self.nodes.append(node)
        elif method is Method.HALF:
            node.input[at] = self.halved(node.input[at], weight)
            self.nodes.append(node)
        else:
            node.input[at] = self.dequantized(node.input[at], weight, _axis(node), -127, 127)[0]
            self.nodes.append(node)

    def block(self, node: onnx.NodeProto, weight: Array, bits: int) -> None:
        source, output = node.input[0], node.output[0]
        if node.op_type == "Conv":
            patches = Patches(node, weight.shape[2:])
            self.nodes += patches.before()
            for name, value in patches.constants.items():
                self.add(name, value)
            source, output, weight = patches.rows, f"{output}.product", as_matrix(weight)
        elif node.op_type == "Gemm" and _attribute(node, "transB", 0):
            weight = weight.T
        packed, scales = blocks(weight, bits)
        name = node.input[1]
        inputs = [source, self.add(f"{name}.q{bits}", packed), self.add(f"{name}.scales", scales)]
        bias = node.input[2] if len(node.input) > 2 else ""
        self.nodes.append(
            helper.make_node(
                "MatMulNBits",
                [*inputs, "", "", bias] if bias else inputs,
                [output],
                name=node.name,
                domain="com.microsoft",
                K=weight.shape[0],
                N=weight.shape[1],
                bits=bits,
                block_size=BLOCK_SIZE,
                accuracy_level=self.scheme.accuracy_level,
            )
        )
        if node.op_type == "Conv":
            self.nodes.append(patches.after(output))

    def halved(self, name: str, weight: Array) -> str:
        """The name of a weight stored as 16-bit floats. ONNX Runtime folds the Cast when a session starts: the
        layer computes in float32 with weights widened once, and the narrow ones stay on the disk.
        """
        if f"{name}.wide" not in self.made:
            narrow = self.add(f"{name}.f16", weight.astype(np.float16))
            self.make("Cast", [narrow], f"{name}.wide", to=onnx.TensorProto.FLOAT)
        return f"{name}.wide"

    def static(self, node: onnx.NodeProto, weight: Array) -> None:
        source, name = node.input[0], node.input[1]
        node.input[0], scale = self.rounded(source)
        node.input[1], scales = self.dequantized(name, weight, _axis(node), *REDUCED_RANGE)
        if len(node.input) > 2 and node.input[2]:
            # The kernel adds the bias to its 32-bit sums, so it takes the scale of the products.
            bias = numpy_helper.to_array(self.weights[node.input[2]])
            both = (scales * scale).astype(np.float32)
            whole = np.rint(bias.astype(np.float64) / both)
            stem = f"{node.input[2]}.{_slug(node.name)}"
            inputs = [self.add(f"{stem}.i32", whole.astype(np.int32)), self.add(f"{stem}.scale", both)]
            node.input[2] = self.make("DequantizeLinear", inputs, f"{stem}.wide", axis=0)
        output = node.output[0]
        if node.op_type != "Conv":  # products may answer in float32, which loses nothing
            self.nodes.append(node)
            return
        node.output[0] = f"{output}.raw"
        self.nodes.append(node)
        self.pair(f"{output}.raw", output, *activation_scale(*self.ranges[output]))

    def rounded(self, tensor: str) -> tuple[str, np.float32]:
        """The name of `tensor` after a round trip through 8 bits, and its scale."""
        scale, zero = activation_scale(*self.ranges[tensor])
        name = f"{tensor}.rounded"
        if name not in self.made:
            self.pair(tensor, name, scale, zero)
        return name, scale

    def pair(self, source: str, target: str, scale: np.float32, zero: np.uint8) -> None:
        names = [self.add(f"{target}.scale", np.array(scale)), self.add(f"{target}.zero", np.array(zero))]
        self.make("QuantizeLinear", [source, *names], f"{target}.u8")
        self.make("DequantizeLinear", [f"{target}.u8", *names], target)

    def dequantized(self, name: str, weight: Array, axis: int, low: int, high: int) -> tuple[str, Array]:
        """The name of `weight` widened from 8 bits, and its scales; layers with one weight share it here."""
        packed, scales = per_channel(weight, axis, low, high)
        stem = f"{name}.{-low}"
        if f"{stem}.wide" not in self.made:
            inputs = [self.add(f"{stem}.i8", packed), self.add(f"{stem}.scale", scales)]
            self.make("DequantizeLinear", inputs, f"{stem}.wide", axis=axis)
        return f"{stem}.wide", scales

    def make(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}/{output}", **attributes))
        self.made.add(output)
        return output

    def add(self, name: str, value: Array) -> str:
        self.added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name


def _is_layer(node: onnx.NodeProto, weights: Mapping[str, Any] | set[str]) -> bool:
    """A node of `LAYERS` whose weight is a constant: attention's products of activations are none."""
    if node.op_type == "Gather":
        return node.input[0] in weights and not _attribute(node, "axis", 0)
    return node.op_type in LAYERS and node.input[1] in weights


def _method(node: onnx.NodeProto, scheme: QuantScheme) -> Method:
    method = scheme.method(node.name)
    if node.op_type == "Gather" and method is not Method.WIDE:
        return Method.WEIGHT_ONLY
    if method in (Method.BLOCK4, Method.BLOCK8) and not _is_blockwise(node):
        return Method.WEIGHT_ONLY
    return method


def _is_blockwise(node: onnx.NodeProto) -> bool:
    """Whether MatMulNBits can do what this layer does."""
    if node.op_type == "Gemm":
        factors = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
        return not _attribute(node, "transA", 0) and all(factor == 1.0 for factor in factors)
    return node.op_type == "MatMul" or is_product(node)


def _axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts its outputs."""
    if node.op_type == "MatMul":
        return 1
    return 1 if node.op_type == "Gemm" and not _attribute(node, "transB", 0) else 0


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _slug(name: str) -> str:
    return name.strip("/").replace("/", ".")
