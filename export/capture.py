"""Torch to ONNX: one component becomes one graph with its weights in a file beside it.

Knows how a graph is traced, checked against the signature table, cleaned and written; not what it computes.
The graphs hold no stack trace, path or date, so equal weights give equal bytes. Traced with the TorchScript
exporter: for these modules it is ten times faster than the one built on torch.export, gives the same speed in
ONNX Runtime, and names nodes by module path, which quantization schemes select by.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from storyv_lite.components import Component, Dimensions, Signature, TensorSpec, signature
from storyv_lite.errors import ParityError
from storyv_lite.export.graphs import OPSET, llama_graph
from storyv_lite.export.specs import LanguageModel, dummy_inputs

GRAPH, DATA = "model.onnx", "model.onnx.data"
EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them
_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def capture(module: nn.Module, component: Component, dims: Dimensions) -> onnx.ModelProto:
    """The graph of one component in float32, checked against the signature table.

    Raises `ParityError` when names, types or fixed axes differ from the table.
    """
    wanted = signature(component, dims)
    if isinstance(module, LanguageModel):
        model = llama_graph(module.backbone, wanted)
    else:
        model = _fold(_settle_shapes(_fold(_trace(module, wanted)), wanted))
    check_signature(model, wanted, component)
    return clean(model, wanted)


def check_signature(model: onnx.ModelProto, wanted: Signature, component: Component) -> None:
    """Compare what a graph takes and gives with the table. Raises `ParityError` for the first difference."""
    for kind, found, specs in (
        ("input", model.graph.input, wanted.inputs),
        ("output", model.graph.output, wanted.outputs),
    ):
        names = [value.name for value in found]
        if names != [spec.name for spec in specs]:
            needed = ", ".join(spec.name for spec in specs)
            raise ParityError(f"`{component}` has the {kind}s {', '.join(names)}; needed are {needed}")
        for value, spec in zip(found, specs, strict=True):
            _check_tensor(value, spec, f"{kind} `{spec.name}` of `{component}`")


def clean(model: onnx.ModelProto, wanted: Signature | None = None) -> onnx.ModelProto:
    """The model without anything that tells where or when it was made; `wanted` names its axes."""
    _prune(model.graph)
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        _strip(part)
    for value in (*model.graph.input, *model.graph.output):
        _strip(value)
    del model.graph.value_info[:]
    used = {node.domain for node in model.graph.node} | {""}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    model.producer_name, model.producer_version, model.graph.name = "storyv-lite", "", "main_graph"
    if wanted is not None:
        for values, specs in (
            (model.graph.input, wanted.inputs),
            (model.graph.output, wanted.outputs),
        ):
            for value, spec in zip(values, specs, strict=True):
                _name_axes(value, spec)
    return model


def shorten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Number the inner tensors: their names repeat on every edge what node names tell already."""
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    inner = [*(tensor.name for tensor in graph.initializer), *(o for node in graph.node for o in node.output)]
    short = {name: f"t{index}" for index, name in enumerate(name for name in inner if name not in fixed)}
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
    return model


def save_graph(model: onnx.ModelProto, folder: Path) -> None:
    """Write `model.onnx` and `model.onnx.data` into `folder`; the model keeps its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA).unlink(missing_ok=True)  # the writer appends
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(
        copy,
        folder / GRAPH,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=EXTERNAL_FROM,
    )
    if (folder / DATA).is_file():
        (folder / DATA).chmod((folder / GRAPH).stat().st_mode)  # the writer keeps it to its owner


def load_graph(folder: Path) -> onnx.ModelProto:
    """Read back what `save_graph` wrote, weights included."""
    return onnx.load(folder / GRAPH)


@contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Catch what exporters print and warn about; the text is there for whoever asks for details."""
    noise, level = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(noise), redirect_stderr(noise), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield noise
    finally:
        logging.disable(level)


def _trace(module: nn.Module, wanted: Signature) -> onnx.ModelProto:
    free = {
        spec.name: {axis: name for axis, name in enumerate(spec.axes) if isinstance(name, str)}
        for spec in (*wanted.inputs, *wanted.outputs)
    }
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        written = Path(folder) / GRAPH
        torch.onnx.export(
            module,
            dummy_inputs(wanted),
            written,
            dynamo=False,
            input_names=[spec.name for spec in wanted.inputs],
            output_names=[spec.name for spec in wanted.outputs],
            dynamic_axes={name: axes for name, axes in free.items() if axes},
            opset_version=OPSET,
        )
        return onnx.load(written)


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let ONNX Runtime fold constants once, here, so that no session has to do it again when it starts.

    Only the passes that hold on every machine. Matrix products stay products: fusing their bias would turn
    them into Gemm between two reshapes.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / GRAPH)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["MatMulAddFusion"],
        )
        return onnx.load(Path(folder) / GRAPH)


def _settle_shapes(model: onnx.ModelProto, wanted: Signature) -> onnx.ModelProto:
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
        [np.asarray(a) for a in _probe(model, names, dummy_inputs(wanted, n), wanted)] for n in (2, 3)
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
    model: onnx.ModelProto, names: list[str], inputs: tuple[torch.Tensor, ...], wanted: Signature
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
    values: list[Any] = session.run(names, feed)
    return values


def _prune(graph: onnx.GraphProto) -> None:
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


def _check_tensor(value: onnx.ValueInfoProto, spec: TensorSpec, where: str) -> None:
    tensor = value.type.tensor_type
    dtype = _TYPES.get(tensor.elem_type, str(tensor.elem_type))
    if dtype != spec.dtype:
        raise ParityError(f"{where} is {dtype}; {spec.dtype} is needed")
    axes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
    if len(axes) != len(spec.axes):
        raise ParityError(f"{where} has {len(axes)} axes; {len(spec.axes)} are needed")
    for found, needed in zip(axes, spec.axes, strict=True):
        # A symbolic axis where a number is needed is the tracer not knowing; parity runs settle it.
        if isinstance(found, int) and found != needed:
            raise ParityError(f"{where} has an axis of {found}; `{needed}` is needed")


def _name_axes(value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    for dim, axis in zip(value.type.tensor_type.shape.dim, spec.axes, strict=True):
        if isinstance(axis, int):
            dim.dim_value = axis
        else:
            dim.dim_param = axis


def _strip(part: Any) -> None:
    part.doc_string = ""
    if hasattr(part, "metadata_props"):
        del part.metadata_props[:]
