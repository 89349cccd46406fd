"""Applies a quantization scheme to a graph: weights are packed here, once, away from the device.

Knows how ONNX Runtime wants quantized layers written (QuantizeLinear / DequantizeLinear pairs around
convolutions and products, MatMulNBits for blocks), not which layer gets which method.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.coverage import REST, Stored
from storyv_lite.errors import ParityError
from storyv_lite.export.layers import (
    BLOCKS,
    LAYERS,
    PRODUCTS,
    attribute,
    choose_method,
    is_layer,
    output_axis,
)
from storyv_lite.export.products import Patches, as_matrix
from storyv_lite.export.rounding import activation_scale, blocks, per_channel, symmetric_scale, widen_blocks
from storyv_lite.quantization import BLOCK_SIZE, REDUCED_RANGE, STORAGE, Method, QuantScheme, Rounding

Array = NDArray[Any]
HEARD = 64  # output channels of a layer whose error a vault is told of, at most
Ranges = Mapping[str, tuple[float, float]]  # tensor name to smallest and largest value


@dataclass(frozen=True)
class Quantized:
    """A graph with packed weights, and what was done to each of them."""

    model: onnx.ModelProto
    stored: tuple[Stored, ...]


class Vault(Protocol):
    """Where weights come from and go to while a graph is quantized."""

    def read(self, tensor: onnx.TensorProto) -> Array:
        """The value of an initializer."""

    def store(self, name: str, value: Array) -> onnx.TensorProto:
        """A new initializer of this value."""

    def keep(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """An initializer of the graph as it is."""

    def hear(self, layer: str, bits: int, packed: Array, right: Array) -> None:
        """What some weights of a layer have become, for whoever measures that."""


class InGraph:
    """Weights that lie in the graph itself."""

    def read(self, tensor: onnx.TensorProto) -> Array:
        value: Array = numpy_helper.to_array(tensor)
        return value

    def store(self, name: str, value: Array) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(value), name)

    def keep(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        return tensor

    def hear(self, layer: str, bits: int, packed: Array, right: Array) -> None:
        pass


def quantize(
    model: onnx.ModelProto,
    scheme: QuantScheme,
    ranges: Ranges | None = None,
    moments: Mapping[str, Array] | None = None,
    vault: Vault | None = None,
) -> Quantized:
    """A copy of `model` with every layer stored as `scheme` says, its weights read from and put into `vault`.

    `ranges` are needed for the tensors that `static_tensors` names, `moments` for those of `moment_tensors`.
    Raises KeyError when one is missing.
    """
    return _Quantizer(model, scheme, ranges or {}, moments or {}, vault or InGraph()).run()


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


class _Quantizer:
    """One pass over a graph's nodes; holds what several layers share."""

    def __init__(
        self,
        model: onnx.ModelProto,
        scheme: QuantScheme,
        ranges: Ranges,
        moments: Mapping[str, Array],
        vault: Vault,
    ) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.scheme, self.ranges, self.moments, self.vault = scheme, ranges, moments, vault
        self.weights = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.added: dict[str, onnx.TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.made: set[str] = set()
        self.stored: list[Stored] = []
        self.layer_weights: set[str] = set()

    def run(self) -> Quantized:
        for node in self.model.graph.node:
            self.layer(node) if is_layer(node, self.weights) else self.nodes.append(node)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*map(self.vault.keep, kept), *self.added.values()])
        domains = {node.domain for node in self.nodes} - {opset.domain for opset in self.model.opset_import}
        if "com.microsoft" in domains:
            self.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        rest = [tensor for tensor in kept if tensor.name not in self.layer_weights]
        floats = [tensor for tensor in rest if tensor.data_type == onnx.TensorProto.FLOAT]
        count = sum(int(np.prod(tensor.dims)) for tensor in floats)
        self.stored.append(Stored(REST, Method.WIDE, count, sum(map(_bytes, rest)), "no weight of a layer"))
        return Quantized(self.model, tuple(self.stored))

    def layer(self, node: onnx.NodeProto) -> None:
        at = 0 if node.op_type == "Gather" else 1
        name = node.input[at]
        weight = self.vault.read(self.weights[name])
        method, reason = choose_method(node, weight, self.scheme)
        before, rounding = set(self.added), Rounding.NEAREST
        if method is Method.WIDE:
            self.nodes.append(node)
        elif method in BLOCKS:
            rounding = self.block(node, weight, STORAGE[method].bits)
        elif method is Method.STATIC:
            self.static(node, weight)
        else:
            narrow = self.halved if method is Method.HALF else self.dequantized
            node.input[at] = narrow(name, weight, output_axis(node))[0]
            self.nodes.append(node)
        count, size = weight.size, sum(_bytes(self.added[added]) for added in self.added.keys() - before)
        if name in self.layer_weights:  # shared with a layer that counted it
            count = 0
        elif method is Method.WIDE:
            size = weight.nbytes
        self.layer_weights.add(name)
        self.stored.append(Stored(node.name, method, count, size, reason, rounding))

    def block(self, node: onnx.NodeProto, weight: Array, bits: int) -> Rounding:
        source, output = node.input[0], node.output[0]
        if node.op_type == "Conv":
            patches = Patches(node, weight.shape[2:])
            self.nodes += patches.before()
            for name, value in patches.constants.items():
                self.add(name, value)
            source, output, weight = patches.rows, f"{output}.product", as_matrix(weight)
        elif node.op_type == "Gemm" and attribute(node, "transB", 0):
            weight = weight.T
        gptq = self.scheme.rounding is Rounding.GPTQ and node.op_type in PRODUCTS
        name = node.input[1]
        if f"{name}.scales" not in self.made:
            packed, scales = blocks(weight, bits, self.moments[source] if gptq else None)
            some = slice(None, None, -(-len(packed) // HEARD))
            wide = widen_blocks(packed[some], scales[some], bits, len(weight))
            self.vault.hear(node.name, bits, wide, weight[:, some])
            self.add(f"{name}.q{bits}", packed)
            self.widened(f"{name}.scales", scales)
        inputs = [source, f"{name}.q{bits}", f"{name}.scales"]
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
        return Rounding.GPTQ if gptq else Rounding.NEAREST

    def halved(self, name: str, weight: Array, axis: int) -> tuple[str, None]:
        """The name of a weight stored as 16-bit floats, widened once when a session starts."""
        if f"{name}.wide" not in self.made:
            half = weight.astype(np.float16)
            some = slice(None, None, -(-len(half) // HEARD))
            self.vault.hear(name, 16, half[some], weight[some])
            self.widened(f"{name}.wide", half)
        return f"{name}.wide", None

    def widened(self, name: str, half: Array) -> None:
        """16-bit floats under `name` in 32 bits. ONNX Runtime folds the Cast when a session starts."""
        self.make("Cast", [self.add(f"{name}.f16", half)], name, to=onnx.TensorProto.FLOAT)

    def static(self, node: onnx.NodeProto, weight: Array) -> None:
        source, name = node.input[0], node.input[1]
        node.input[0], scale = self.rounded(source)
        node.input[1], scales = self.dequantized(name, weight, output_axis(node), *REDUCED_RANGE)
        if self.scheme.symmetric:  # a GPU's kernels add a wide bias and answer wide
            self.nodes.append(node)
            return
        if len(node.input) > 2 and node.input[2]:
            # The kernel adds the bias to its 32-bit sums, so it takes the scale of the products.
            bias = self.vault.read(self.weights[node.input[2]])
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
        find = symmetric_scale if self.scheme.symmetric else activation_scale
        scale, zero = find(*self.ranges[tensor])
        name = f"{tensor}.rounded"
        if name not in self.made:
            self.pair(tensor, name, scale, zero)
        return name, scale

    def pair(self, source: str, target: str, scale: np.float32, zero: np.uint8 | np.int8) -> None:
        names = [self.add(f"{target}.scale", np.array(scale)), self.add(f"{target}.zero", np.array(zero))]
        self.make("QuantizeLinear", [source, *names], f"{target}.u8")
        self.make("DequantizeLinear", [f"{target}.u8", *names], target)

    def dequantized(
        self, name: str, weight: Array, axis: int, low: int = -127, high: int = 127
    ) -> tuple[str, Array]:
        """The name of `weight` widened from 8 bits, and its scales; layers with one weight share it here."""
        packed, scales = per_channel(weight, axis, low, high)
        some = slice(None, None, -(-packed.shape[axis] // HEARD))
        few, right = (np.moveaxis(array, axis, -1)[..., some] for array in (packed, weight))
        self.vault.hear(name, 8, few * scales[some], right)
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
        self.added[name] = self.vault.store(name, value)
        return name


def _bytes(tensor: onnx.TensorProto) -> int:
    width = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return width * int(np.prod(tensor.dims, dtype=np.int64))


def _slug(name: str) -> str:
    return name.strip("/").replace("/", ".")
