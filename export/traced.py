"""The structure of a traced component: the trace runs on weights that take no memory and gives none away.

Knows torch's exporter and how a module is built around placeholders: each weight is one number seen from
everywhere in its shape, and layers answer without computing. What is worked out from weights alone (a matrix
turned, an axis added) becomes a reference that does the same when it is read.
"""

from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import symbolic_helper

from storyv_lite.components import Component, Dimensions, Signature, signature
from storyv_lite.export.capture import check_signature, clean, trace
from storyv_lite.export.simplify import simplify
from storyv_lite.export.specs import open_sides, opened
from storyv_lite.export.weights import Structure, Weight, Weights, placeholder
from storyv_lite.quantization import DRAWING

Array = NDArray[Any]
Origins = dict[int, Weight]  # by the identity of a module's parameter


def traced_structure(
    module: nn.Module,
    origins: Origins,
    component: Component,
    dims: Dimensions,
    fused: bool = True,
    any_size: bool = False,
) -> Structure:
    """The graph of a module of placeholders, as `capture` gives it, its weights by reference.

    `fused` makes attention of a UNet one node, which only ONNX Runtime knows; `any_size` leaves the sides of
    its latents open. Raises `ParityError` when names, types or fixed axes differ from the signature table.
    """
    wanted = signature(component, dims)
    traced = opened(wanted) if component in DRAWING else wanted  # on few cells
    settled = Signature(traced.inputs, tuple(map(open_sides, wanted.outputs))) if any_size else wanted
    for part in module.modules():
        if fused and isinstance(part, UNet2DConditionModel):
            part.set_attn_processor(FusedAttnProcessor())
        elif type(part) in (nn.Conv2d, nn.Linear):
            part.forward = partial(_idle, part)
    named = dict(module.named_parameters(remove_duplicate=False))
    weights = {name: origins[id(parameter)] for name, parameter in named.items()}
    model = trace(module, traced, weights=False)
    buffers = {name: buffer for name, buffer in module.named_buffers() if name not in weights}
    for value in list(model.graph.input):
        if value.name in buffers:  # a small table, which is there
            array = buffers[value.name].detach().numpy()
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
            model.graph.input.remove(value)
    taken = {value.name for value in model.graph.input}
    weights = {name: weight for name, weight in weights.items() if name in taken}
    # pictures are decoded in tiles, of any size
    model = simplify(model, traced if component is Component.VAE_DECODER else settled)
    weights = _settle_weights(model.graph, weights)
    inputs = [value for value in model.graph.input if value.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    used = {name for node in model.graph.node for name in node.input}
    weights = {name: weight for name, weight in weights.items() if name in used}
    model.graph.initializer.extend(placeholder(name, weight) for name, weight in weights.items())
    check_signature(model, wanted, component)
    return Structure(clean(model, settled), weights)


def empty(module: nn.Module, weights: Weights, origins: Origins) -> nn.Module:
    """`module`, built without weights, with placeholders where they were, which `origins` learns."""
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        shared = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        setattr(owner, attribute, shared)
        if name in weights:
            origins[id(shared)] = weights[name]
    return module


class FusedAttnProcessor:
    """Attention as one node, so that the scores of all heads are never held at once."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source)
        out: Tensor = attn.to_out[0](_attend(*inputs, attn.heads, float(attn.scale)))
        return out


class _MultiHeadAttention(torch.autograd.Function):
    """ONNX Runtime's operator, and what it computes: queries, keys and values (B, tokens, heads * size)."""

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
        op = "com.microsoft::MultiHeadAttention"
        return g.op(op, query, key, value, num_heads_i=heads, scale_f=scale).setType(query.type())

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, scale: float) -> Tensor:
        q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _idle(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What a layer is in a trace: its node, and an answer of the right shape, not computed."""
    inputs = [hidden, *(t for t in (layer.weight, layer.bias) if t is not None)]  # the exporter knows no None
    answer: Tensor = _linear(*inputs) if isinstance(layer, nn.Linear) else _convolve(layer, *inputs)
    return answer


class _Linear(torch.autograd.Function):
    @staticmethod
    def symbolic(g: Any, hidden: Any, weight: Any, *bias: Any) -> Any:
        if symbolic_helper._get_tensor_rank(hidden) == 2 and bias:
            return g.op("Gemm", hidden, weight, *bias, transB_i=1)
        product = g.op("MatMul", hidden, g.op("Transpose", weight, perm_i=[1, 0]))
        return g.op("Add", product, *bias) if bias else product

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        return hidden.new_zeros((*hidden.shape[:-1], weight.shape[0]))


class _Conv(torch.autograd.Function):
    @staticmethod
    def symbolic(g: Any, layer: nn.Conv2d, hidden: Any, weight: Any, *bias: Any) -> Any:
        return g.op(
            "Conv",
            hidden,
            weight,
            *bias,
            dilations_i=layer.dilation,
            group_i=layer.groups,
            kernel_shape_i=layer.kernel_size,
            pads_i=[*layer.padding, *layer.padding],
            strides_i=layer.stride,
        )

    @staticmethod
    def forward(ctx: Any, layer: nn.Conv2d, hidden: Tensor, weight: Tensor, *bias: Tensor) -> Tensor:
        shape: Any = (hidden.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride)
        sides = zip(*shape, strict=True)
        cells = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in sides]
        return hidden.new_zeros((hidden.shape[0], weight.shape[0], *cells))


_attend: Any = _MultiHeadAttention.apply
_linear: Any = _Linear.apply
_convolve: Any = _Conv.apply


def _settle_weights(graph: onnx.GraphProto, weights: Weights) -> dict[str, Weight]:
    """Take nodes that see weights and constants only out of the graph; their outputs become weights."""
    known = dict(weights)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        sources = [known.get(name) for name in node.input]
        if not any(sources) or not all(n in known or n in constants for n in node.input):
            kept.append(node)
            continue
        inputs = {n: numpy_helper.to_array(constants[n]) for n in node.input if n in constants}
        shapes = {n: np.broadcast_to(np.float32(0), known[n].shape) for n in node.input if n in known}
        shape = _apply(node, {**inputs, **shapes}).shape
        lazy = {name: known[name] for name in node.input if name in known}
        known[node.output[0]] = Weight(shape, partial(_derive, node, inputs, lazy))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(copies)
    return known


def _derive(node: onnx.NodeProto, inputs: dict[str, Array], weights: dict[str, Weight]) -> Array:
    return _apply(node, {**inputs, **{name: weight.read() for name, weight in weights.items()}})


def _apply(node: onnx.NodeProto, inputs: dict[str, Array]) -> Array:
    if node.op_type == "Transpose":  # a view
        return inputs[node.input[0]].transpose(node.attribute[0].ints)
    answer: Array = ReferenceEvaluator(node).run(None, inputs)[0]
    return answer
