"""Graphs made smaller without changing what they compute: constants, settled shapes, dead nodes, short names.

Knows ONNX only, and which shapes follow from those of the inputs. A traced graph is three times as long as it
needs to be, and every session pays for that when it loads.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from storyv_lite.components import Signature
from storyv_lite.export.specs import dummy_inputs

NAMED = ("Conv", "MatMul", "Gemm", "Gather", "MatMulNBits")  # nodes with weights keep their module path


def simplify(model: onnx.ModelProto, wanted: Signature) -> onnx.ModelProto:
    """The traced graph of a component with this signature, folded and settled; weights may be its inputs."""
    model = _fold(_settle_shapes(_fold(model), wanted))
    prune(model.graph)
    return model


def shorten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Number the inner tensors and let only layers keep their names: paths on every edge and node weigh more
    than the nodes themselves.
    """
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    inner = [*(tensor.name for tensor in graph.initializer), *(o for node in graph.node for o in node.output)]
    short = {name: f"t{index}" for index, name in enumerate(name for name in inner if name not in fixed)}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
        if node.op_type not in NAMED:
            node.name = ""
    return model


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX Runtime fold constants once, here, so that no session has to do it again when it starts.

    Only the passes that hold on every machine. Matrix products stay products: fusing their bias would turn
    them into Gemm between two reshapes.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],
        )
        return onnx.load(Path(folder) / "model.onnx")


def _settle_shapes(model: onnx.ModelProto, wanted: Signature) -> onnx.ModelProto:
    """Replace what a traced graph computes from shapes by constants, where no free axis changes it.

    Such a graph works out every shape anew in every call, in more nodes than do the work. Two probes show
    which values follow one; a Reshape may have one such axis, which becomes -1.
    """
    graph = model.graph
    derived = _derived(graph)
    reshapes = {n.output[0]: n for n in graph.node if n.op_type == "Reshape" and n.input[1] in derived}
    two, three = (_probe(model, derived, list(reshapes), dummy_inputs(wanted, n), wanted) for n in (2, 3))
    settled: list[onnx.TensorProto] = []
    for name, first in two.items():
        second = three[name]
        if name in derived and first.shape == second.shape and (first == second).all():
            settled.append(numpy_helper.from_array(first, name))
        elif name in reshapes and (first != second).sum() <= 1:
            reshapes[name].input[1] = f"{name}.shape"
            shape = np.where(first == second, first, -1).astype(np.int64)
            settled.append(numpy_helper.from_array(shape, f"{name}.shape"))
    done = {tensor.name for tensor in settled}
    kept = [node for node in graph.node if not set(node.output) <= done]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(settled)
    return model


def _derived(graph: onnx.GraphProto) -> list[str]:
    """Outputs of nodes that see shapes and constants only."""
    known = {tensor.name for tensor in graph.initializer} | {""}
    derived: dict[str, None] = {}
    for node in graph.node:
        if node.op_type == "Shape" or all(name in known or name in derived for name in node.input):
            derived.update(dict.fromkeys(node.output))
    return list(derived)


def _probe(
    model: onnx.ModelProto,
    derived: list[str],
    reshapes: list[str],
    inputs: tuple[torch.Tensor, ...],
    wanted: Signature,
) -> dict[str, NDArray[Any]]:
    """Values of `derived` and shapes of `reshapes` for inputs of these shapes.

    No layer runs and no weight is needed where every axis follows from those of the inputs.
    """
    if not derived and not reshapes:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    feed = {spec.name: tensor.numpy() for spec, tensor in zip(wanted.inputs, inputs, strict=True)}
    for value in probe.graph.input:
        for axis, size in zip(
            value.type.tensor_type.shape.dim, feed.get(value.name, _NONE).shape, strict=False
        ):
            axis.dim_value = size
    _plain(probe.graph)
    known, shapes = _work_out(probe, derived)
    found = {name: np.array(shapes[name]) for name in reshapes if name in shapes}
    if len(known) + len(found) < len(derived) + len(reshapes):
        return _run(model, derived, reshapes, feed)
    return {name: known[name] for name in derived} | found


_NONE = np.zeros(())


def inferred_shapes(
    model: onnx.ModelProto, inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a graph for inputs of these shapes, as far as they follow from them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in probe.graph.input:
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, inputs[value.name]))
    for value in probe.graph.output:
        value.type.tensor_type.ClearField("shape")
    _plain(probe.graph)
    known, shapes = _work_out(probe, _derived(probe.graph))
    return shapes | {name: value.shape for name, value in known.items()}


def _work_out(
    probe: onnx.ModelProto, derived: list[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[int, ...]]]:
    """Values of `derived` and shapes of all tensors, as far as they follow; `probe` loses what is known."""
    known: dict[str, NDArray[Any]] = {}
    while True:
        shapes = _shapes(probe)
        fresh = _derive(probe.graph, set(derived), known, shapes)
        if not fresh:
            break
        known |= fresh
        constants = [numpy_helper.from_array(value, name) for name, value in fresh.items()]
        kept = [node for node in probe.graph.node if not set(node.output) <= fresh.keys()]
        del probe.graph.node[:]
        probe.graph.node.extend(kept)
        probe.graph.initializer.extend(constants)
    return known, shapes


def _plain(graph: onnx.GraphProto) -> None:
    """Put in the place of operators that inference does not know some that answer in the same shape."""
    for node in graph.node:
        if node.op_type in ("MultiHeadAttention", "Gelu"):  # that of the first
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
        elif node.op_type == "MatMulNBits":
            sides = [next(a.i for a in node.attribute if a.name == name) for name in ("K", "N")]
            weight = helper.make_tensor_value_info(f"{node.input[1]}.plain", onnx.TensorProto.FLOAT, sides)
            graph.input.append(weight)
            node.CopyFrom(helper.make_node("MatMul", [node.input[0], weight.name], node.output))


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of inner tensors, as far as they follow from those of the inputs."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes


def _derive(
    graph: onnx.GraphProto,
    derived: set[str],
    known: dict[str, NDArray[Any]],
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, NDArray[Any]]:
    """Values of `derived` that are not yet known and follow from shapes."""
    inside = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in inside} | known
    fresh: dict[str, NDArray[Any]] = {}
    for node in graph.node:
        if not set(node.output) <= derived or set(node.output) <= known.keys():
            continue
        if node.op_type == "Shape":
            if node.input[0] in shapes:
                start, stop = (_axis(node, name) for name in ("start", "end"))
                fresh[node.output[0]] = np.array(shapes[node.input[0]][start:stop], dtype=np.int64)
        elif all(name in values or name in fresh for name in node.input if name):
            inputs = {name: fresh.get(name, values.get(name)) for name in node.input if name}
            answers = ReferenceEvaluator(node).run(None, inputs)
            fresh.update(zip(node.output, map(np.asarray, answers), strict=True))
    return fresh


def _axis(node: onnx.NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)


def _run(
    model: onnx.ModelProto, derived: list[str], reshapes: list[str], feed: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The same by running the graph, where inference does not know an operator."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.node.extend(helper.make_node("Shape", [name], [f"{name}.probed"]) for name in reshapes)
    outputs = [*derived, *(f"{name}.probed" for name in reshapes)]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    taken = {value.name: value.shape for value in session.get_inputs()}
    # weights that are inputs are pages of nothing: no shape depends on them
    given = {n: feed[n] if n in feed else np.zeros(shape, np.float32) for n, shape in taken.items()}
    return dict(zip([*derived, *reshapes], map(np.asarray, session.run(outputs, given)), strict=True))


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and weights that nothing reads."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
