"""Graphs in float16 between float32 borders: half the bytes, and what tensor cores of a GPU multiply.

Knows ONNX only, and needs no shape of any tensor. Sines and cosines keep float32, with all that leads to
them: a timestep near 999 is rounded by up to a quarter of a radian in float16.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
_WAVES = ("Sin", "Cos")
_FLOAT_ONLY = {"Resize": (1, 2)}  # inputs that an operator takes in float32 alone: region and scales


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose weights and inner tensors are float16; inputs and outputs stay as they are."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    wide = _lead_to_waves(graph)
    before, after = _borders(graph)
    names = {cast.input[0]: cast.output[0] for cast in before} | {c.output[0]: c.input[0] for c in after}
    nodes = list(before)
    _halve_weights(graph, wide, names)
    for index, node in enumerate(graph.node):
        node.output[:] = [names.get(name, name) for name in node.output]
        if index in wide:
            nodes.append(node)
            if node.op_type in _WAVES:
                names[node.output[0]] = f"{node.output[0]}.half"
                nodes.append(_cast(node.output[0], names[node.output[0]], HALF))
            continue
        skipped = _FLOAT_ONLY.get(node.op_type, ())
        for at, name in enumerate(node.input):
            node.input[at] = name if at in skipped else names.get(name, name)
        if node.op_type == "Cast" and node.attribute[0].i == FLOAT:
            node.attribute[0].i = HALF
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*nodes, *after]]
    del graph.node[:]
    graph.node.extend(copies)
    return half


def _lead_to_waves(graph: onnx.GraphProto) -> set[int]:
    """Places of sines, cosines and every node that leads to one."""
    needed: set[str] = set()
    found = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type in _WAVES or needed.intersection(node.output):
            needed.update(node.input)
            found.add(index)
    return found


def _borders(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], list[onnx.NodeProto]]:
    """Casts behind the float32 inputs, and before the float32 outputs."""
    taken, given = (
        [value.name for value in values if value.type.tensor_type.elem_type == FLOAT]
        for values in (graph.input, graph.output)
    )
    before = [_cast(name, f"{name}.half", HALF) for name in taken]
    return before, [_cast(f"{name}.half", name, FLOAT) for name in given]


def _halve_weights(graph: onnx.GraphProto, wide: set[int], names: dict[str, str]) -> None:
    """Round every float32 weight; one that is needed in float32 too stays, and its half gets a name."""
    in_float: defaultdict[str, set[bool]] = defaultdict(set)
    for index, node in enumerate(graph.node):
        for at, name in enumerate(node.input):
            in_float[name].add(index in wide or at in _FLOAT_ONLY.get(node.op_type, ()))
    for tensor in list(graph.initializer):
        if tensor.data_type != FLOAT or in_float[tensor.name] == {True}:
            continue
        rounded = numpy_helper.to_array(tensor).astype(np.float16)
        if True in in_float[tensor.name]:
            names[tensor.name] = f"{tensor.name}.half"
            graph.initializer.append(numpy_helper.from_array(rounded, names[tensor.name]))
        else:
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)
