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

import onnx
import torch
from torch import nn

from storyv_lite.components import Component, Dimensions, Signature, TensorSpec, signature
from storyv_lite.errors import ParityError
from storyv_lite.export.graphs import OPSET
from storyv_lite.export.language import language_graph
from storyv_lite.export.simplify import simplify
from storyv_lite.export.specs import dummy_inputs, opened
from storyv_lite.export.weights import fill, of_module
from storyv_lite.modeling.components import LanguageModel

GRAPH, DATA = "model.onnx", "model.onnx.data"
EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them
_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


def capture(module: nn.Module, component: Component, dims: Dimensions) -> onnx.ModelProto:
    """The graph of one component in float32, checked against the signature table.

    Raises `ParityError` when names, types or fixed axes differ from the table.
    """
    wanted = signature(component, dims)
    if isinstance(module, LanguageModel):
        model = fill(language_graph(module.backbone, of_module(module.backbone), wanted))
    else:
        # pictures are decoded in tiles, of any size
        traced_on = opened(wanted) if component is Component.VAE_DECODER else wanted
        model = simplify(trace(module, traced_on), traced_on)
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


def trace(module: nn.Module, wanted: Signature, weights: bool = True) -> onnx.ModelProto:
    """The module as torch's exporter writes it; without `weights` they are inputs of the graph, by name."""
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
            export_params=weights,
            keep_initializers_as_inputs=not weights,  # else weights of equal values would become one
            do_constant_folding=weights,
            autograd_inlining=weights,  # without them layers are functions of our own, which stay whole
        )
        return onnx.load(written)


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
