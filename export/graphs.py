"""The Llama backbone written node by node as an ONNX graph, straight from its weights.

Knows the architecture and ONNX Runtime's fused operators (GroupQueryAttention keeps rotary positions, causal
mask and cache in one node per layer). Writing it needs no trace: it takes milliseconds where the tracing
exporter takes ten seconds, and reads one weight at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from storyv_lite.components import Signature, TensorSpec
from storyv_lite.errors import ConfigError

OPSET = 20
_CONTRIB = "com.microsoft"
_ELEMENTS = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}


class Graph:
    """A list of nodes and initializers under construction; every method returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(
        self, op: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        outputs = outputs or (f"{name}.out",)
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))
        return outputs[0]

    def linear(self, hidden: str, name: str, *weights: Tensor) -> str:
        """One product with weights (out, in), several stacked side by side."""
        stacked = np.concatenate([_array(weight) for weight in weights]).T
        return self.node("MatMul", (hidden, self.constant(f"{name}.weight", stacked)), f"/{name}/MatMul")

    def model(self, signature: Signature, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, name, _values(signature.inputs), _values(signature.outputs), self.initializers
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def llama_graph(backbone: Any, signature: Signature) -> onnx.ModelProto:
    """A LlamaModel: embeddings and cache in, states after the final norm and cache out.

    Raises `ConfigError` for a variant that these nodes do not describe.
    """
    config = backbone.config
    refuse_unknown(config)
    heads, kv_heads, epsilon = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
    graph = Graph()
    counts, tables = _lengths(graph), _rotary_tables(graph, backbone.rotary_emb)
    norm = graph.constant("layers.0.input_norm.weight", _array(backbone.layers[0].input_layernorm.weight))
    normed = graph.node(
        "SimplifiedLayerNormalization",
        ("inputs_embeds", norm),
        "/layers.0/input_norm",
        axis=-1,
        epsilon=epsilon,
        stash_type=1,
    )
    residual = "inputs_embeds"

    def skip_norm(update: str, weight: Tensor, name: str, states: str = "") -> tuple[str, str]:
        """Add `update` to the residual stream; its sum and its norm."""
        outputs = (states or f"{name}.out", "", "", f"{name}.sum")
        scale = graph.constant(f"{name}.weight", _array(weight))
        op = "SkipSimplifiedLayerNormalization"
        graph.node(op, (update, residual, scale), f"/{name}", outputs, domain=_CONTRIB, epsilon=epsilon)
        return outputs[3], outputs[0]

    for index, layer in enumerate(backbone.layers):
        at, attention, mlp = f"layers.{index}", layer.self_attn, layer.mlp
        packed = graph.linear(
            normed, f"{at}.qkv", attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight
        )
        cache = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        mixed = graph.node(
            "GroupQueryAttention",
            (packed, "", "", *cache, *counts, *tables),
            f"/{at}/attention",
            (f"{at}.mixed", *present),
            domain=_CONTRIB,
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        attended = graph.linear(mixed, f"{at}.o_proj", attention.o_proj.weight)
        residual, normed = skip_norm(attended, layer.post_attention_layernorm.weight, f"{at}.mlp_norm")
        gate = graph.linear(normed, f"{at}.gate", mlp.gate_proj.weight)
        up = graph.linear(normed, f"{at}.up", mlp.up_proj.weight)
        sigmoid = graph.node("Sigmoid", (gate,), f"/{at}/sigmoid")
        silu = graph.node("Mul", (gate, sigmoid), f"/{at}/silu")
        product = graph.node("Mul", (silu, up), f"/{at}/product")
        down = graph.linear(product, f"{at}.down", mlp.down_proj.weight)
        last = index + 1 == len(backbone.layers)
        following = backbone.norm if last else backbone.layers[index + 1].input_layernorm
        name = "norm" if last else f"layers.{index + 1}.input_norm"
        residual, normed = skip_norm(down, following.weight, name, "last_hidden_state" if last else "")
    return graph.model(signature, "language_model")


def refuse_unknown(config: Any) -> None:
    """Raise `ConfigError` when a Llama configuration holds what `llama_graph` does not write."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    odd = {
        "model_type": config.model_type != "llama" and config.model_type,
        "rope_type": rope != "default" and rope,
        "attention_bias": getattr(config, "attention_bias", False),
        "mlp_bias": getattr(config, "mlp_bias", False),
        "hidden_act": (act := getattr(config, "hidden_act", "silu")) != "silu" and act,
    }
    for name, value in odd.items():
        if value:
            raise ConfigError(f"the language model has `{name}` = `{value}`, which export does not write yet")


def _lengths(graph: Graph) -> tuple[str, str]:
    """Last valid position per row (int32) and length of past plus new tokens (int32), from the mask."""
    one, last_axis = graph.constant("one", np.array([1])), graph.constant("last_axis", np.array([1]))
    valid = graph.node("ReduceSum", ("attention_mask", last_axis), "/lengths/valid", keepdims=0)
    last = graph.node("Sub", (valid, one), "/lengths/last")
    shape = graph.node("Shape", ("attention_mask",), "/lengths/shape", start=1)
    total = graph.node("Squeeze", (shape,), "/lengths/total")
    narrow = {"to": onnx.TensorProto.INT32}
    return (
        graph.node("Cast", (last,), "/lengths/last_i32", ("seqlens_k",), **narrow),
        graph.node("Cast", (total,), "/lengths/total_i32", ("total_sequence_length",), **narrow),
    )


def _rotary_tables(graph: Graph, rotary: Any) -> tuple[str, str]:
    """Cosines and sines (total, head_dim / 2) of the positions in use: a stored table would be larger."""
    total = graph.node("Squeeze", ("/lengths/shape.out",), "/rotary/total")
    zero, step = graph.constant("zero", np.array(0)), graph.constant("step", np.array(1))
    positions = graph.node("Range", (zero, total, step), "/rotary/positions")
    floats = graph.node("Cast", (positions,), "/rotary/floats", to=onnx.TensorProto.FLOAT)
    minus_one = graph.constant("minus_one", np.array([1]))
    column = graph.node("Unsqueeze", (floats, minus_one), "/rotary/column")
    frequencies = graph.constant("rotary.inv_freq", _array(rotary.inv_freq)[None])
    angles = graph.node("Mul", (column, frequencies), "/rotary/angles")
    return graph.node("Cos", (angles,), "/rotary/cos"), graph.node("Sin", (angles,), "/rotary/sin")


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array


def _values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _ELEMENTS[spec.dtype], spec.axes) for spec in specs]
