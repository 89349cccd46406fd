"""A graph under construction, node by node: what written graphs share.

Knows nodes, weights by reference and ONNX Runtime's operators; no architecture. Writing a graph needs no
trace: it takes milliseconds where the tracing exporter takes ten seconds, and no weight is read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.components import Signature, TensorSpec
from storyv_lite.export.weights import Structure, Weight, placeholder, stacked, turned

OPSET = 20
CONTRIB = "com.microsoft"
_ELEMENTS = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


class Graph:
    """A list of nodes and initializers under construction; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.weights: dict[str, Weight] = {}

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str, value: Weight) -> str:
        self.initializers.append(placeholder(name, value))
        self.weights[name] = value
        return name

    def node(
        self, op: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        outputs = outputs or (f"{name}.out",)
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))
        return outputs[0]

    def linear(self, hidden: str, name: str, weights: Sequence[Weight], biases: Sequence[Weight] = ()) -> str:
        """One product with weights (out, in), several stacked side by side, and their biases where given."""
        weight = self.weight(f"{name}.weight", turned(stacked(*weights)))
        product = self.node("MatMul", (hidden, weight), f"/{name}/MatMul")
        if not biases:
            return product
        return self.node("Add", (product, self.weight(f"{name}.bias", stacked(*biases))), f"/{name}/Add")

    def structure(self, signature: Signature, name: str) -> Structure:
        graph = helper.make_graph(
            self.nodes, name, _values(signature.inputs), _values(signature.outputs), self.initializers
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return Structure(helper.make_model(graph, opset_imports=opsets, ir_version=10), self.weights)


def _values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _ELEMENTS[spec.dtype], spec.axes) for spec in specs]
