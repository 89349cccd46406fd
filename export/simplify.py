"""Graphs made smaller without changing what they compute: constants, settled shapes, dead nodes, short names.

Knows ONNX only. A traced graph is three times as long as it needs to be, and every session pays for that when
it loads.
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
from onnx import numpy_helper

from storyv_lite.components import Signature
from storyv_lite.export.specs import dummy_inputs

NAMED = ("Conv", "MatMul", "Gemm", "Gather", "MatMulNBits")  # nodes with weights keep their module path


def simplify(
    model: onnx.ModelProto, wanted: Signature, weights: Mapping[str, NDArray[np.float32]] | None = None
) -> onnx.ModelProto:
    """The traced graph of a component with this signature, folded and settled.

    `weights` stand for those that are inputs of the graph; no shape depends on their values.
    """
    model = _fold(_settle_shapes(_fold(model), wanted, weights or {}))
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


def _settle_shapes(
    model: onnx.ModelProto, wanted: Signature, weights: Mapping[str, NDArray[np.float32]]
) -> onnx.ModelProto:
    """Replace what a traced graph computes from shapes by constants, where the batch does not change it.

    Such a graph works out every shape anew in every call, in more nodes than do the work. Two runs with
    different batches show which values follow it; a Reshape may have one such axis, which becomes -1.
    """
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    derived: dict[str, onnx.NodeProto] = {}  # outputs of nodes that see shapes and constants only
    for node in graph.node:
        if node.op_type == "Shape" or all(name in known or name in derived for name in node.input if name):
            derived.update(dict.fromkeys(node.output, node))
    reshapes = {n.output[0]: n for n in graph.node if n.op_type == "Reshape" and n.input[1] in derived}
    names = [*derived, *reshapes]
    two, three = (
        [np.asarray(a) for a in _probe(model, names, dummy_inputs(wanted, n), wanted, weights)]
        for n in (2, 3)
    )
    settled: list[onnx.TensorProto] = []
    for name, first, second in zip(names, two, three, strict=True):
        if name in derived and first.shape == second.shape and (first == second).all():
            settled.append(numpy_helper.from_array(first, name))
        elif name in reshapes:
            axes, others = np.array(first.shape), np.array(second.shape)
            if (axes != others).sum() <= 1:
                reshapes[name].input[1] = f"{name}.shape"
                shape = np.where(axes == others, axes, -1).astype(np.int64)
                settled.append(numpy_helper.from_array(shape, f"{name}.shape"))
    done = {tensor.name for tensor in settled}
    kept = [node for node in graph.node if not set(node.output) <= done]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(settled)
    return model


def _probe(
    model: onnx.ModelProto,
    names: list[str],
    inputs: tuple[torch.Tensor, ...],
    wanted: Signature,
    weights: Mapping[str, NDArray[np.float32]],
) -> list[Any]:
    """The values of inner tensors for one set of inputs."""
    if not names:
        return []
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    taken = {value.name for value in session.get_inputs()}
    feed = {s.name: t.numpy() for s, t in zip(wanted.inputs, inputs, strict=True) if s.name in taken}
    feed |= {name: weight for name, weight in weights.items() if name in taken}
    values: list[Any] = session.run(names, feed)
    return values


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
