"""Language models written node by node as ONNX graphs, from their configuration and weights by reference.

Knows the architectures: decoders with rotary positions and gated layers (Llama, SmolLM, Qwen 2 and 3, Gemma),
and OPT; and ONNX Runtime's fused operators (GroupQueryAttention keeps rotary positions, causal mask and cache
in one node per layer). No weight is read here.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from optimum.utils import NormalizedConfigManager

from storyv_lite.components import Signature
from storyv_lite.errors import ConfigError
from storyv_lite.export.graphs import CONTRIB, Graph
from storyv_lite.export.weights import Structure, Weight, Weights, plus_one

FAMILIES = ("gemma", "llama", "opt", "qwen2", "qwen3")
_ACTIVATIONS = ("silu", "gelu_pytorch_tanh")  # of gated layers


def language_graph(backbone: Any, weights: Weights, signature: Signature) -> Structure:
    """Embeddings and cache in, states after the final norm and cache out.

    `backbone` is the module without its head, of which only configuration and rotary frequencies are read;
    `weights` are the checkpoint's, by the names of the backbone's own state.
    Raises `ConfigError` for a variant that these nodes do not describe.
    """
    refuse_unknown(backbone.config)
    writer = _Opt if backbone.config.model_type == "opt" else _Gated
    return writer(backbone, weights).write(signature)


def refuse_unknown(config: Any) -> None:
    """Raise `ConfigError` when a configuration holds what `language_graph` does not write."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    act = getattr(config, "hidden_act", "silu")
    odd = {
        "model_type": config.model_type not in FAMILIES and config.model_type,
        "rope_type": rope != "default" and rope,
        "layer_types": kinds and ", ".join(sorted(kinds)),
        "hidden_act": act not in _ACTIVATIONS and act,
    }
    if config.model_type == "opt":
        relu = config.activation_function
        odd = {
            "activation_function": relu != "relu" and relu,
            "do_layer_norm_before": not config.do_layer_norm_before and "false",
            "word_embed_proj_dim": config.word_embed_proj_dim != config.hidden_size
            and config.word_embed_proj_dim,
            "_remove_final_layer_norm": getattr(config, "_remove_final_layer_norm", False),
            "layer_norm_elementwise_affine": not config.layer_norm_elementwise_affine and "false",
        }
    for name, value in odd.items():
        if value:
            raise ConfigError(f"the language model has `{name}` = `{value}`, which export does not write yet")


class _Decoder:
    """What both kinds share: products of named weights, the cache, the residual stream."""

    prefix = ""  # of the names of layers
    norm_op = ""

    def __init__(self, backbone: Any, weights: Weights) -> None:
        self.backbone, self.weights, self.config = backbone, weights, backbone.config
        facts = NormalizedConfigManager.get_normalized_config_class(self.config.model_type)(self.config)
        self.heads, self.layers = facts.num_attention_heads, facts.num_layers
        self.kv_heads = getattr(self.config, "num_key_value_heads", None) or self.heads
        self.graph = Graph()
        self.counts = _lengths(self.graph)

    def linear(self, hidden: str, name: str, layer: str, *parts: str) -> str:
        """One product with the weights of `parts` of a layer, side by side, and their biases."""
        names = [f"{layer}.{part}" for part in parts]
        biases = [self.weights[f"{n}.bias"] for n in names if f"{n}.bias" in self.weights]
        return self.graph.linear(hidden, name, [self.weights[f"{n}.weight"] for n in names], biases)

    def attend(self, inputs: tuple[str, str, str], index: int, *tables: str) -> str:
        """One GroupQueryAttention over queries, keys and values, or over all of them packed in the first."""
        cache = [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        present = [f"present.{index}.{part}" for part in ("key", "value")]
        return self.graph.node(
            "GroupQueryAttention",
            (*inputs, *cache, *self.counts, *tables),
            f"/layers.{index}/attention",
            (f"layers.{index}.mixed", *present),
            domain=CONTRIB,
            num_heads=self.heads,
            kv_num_heads=self.kv_heads,
            do_rotary=int(bool(tables)),
            rotary_interleaved=0,
        )

    def scale(self, source: str) -> Weight:
        """The scale of a norm."""
        return self.weights[f"{source}.weight"]

    def norm_inputs(self, source: str, name: str) -> tuple[str, ...]:
        inputs = [self.graph.weight(f"{name}.weight", self.scale(source))]
        if f"{source}.bias" in self.weights:
            inputs.append(self.graph.weight(f"{name}.bias", self.weights[f"{source}.bias"]))
        return tuple(inputs)

    def skip_norm(
        self, update: str, residual: str, source: str, name: str, states: str = ""
    ) -> tuple[str, str]:
        """Add `update` to the residual stream; its sum and its norm."""
        outputs = (states or f"{name}.out", "", "", f"{name}.sum")
        inputs = (update, residual, *self.norm_inputs(source, name))
        self.graph.node(self.norm_op, inputs, f"/{name}", outputs, domain=CONTRIB, epsilon=self.epsilon)
        return outputs[3], outputs[0]

    def next_norm(self, update: str, residual: str, index: int, first: str, final: str) -> tuple[str, str]:
        """`skip_norm` behind layer `index`: the `first` norm of the next one, or the `final` of all."""
        if index + 1 == self.layers:
            return self.skip_norm(update, residual, final, "norm", "last_hidden_state")
        at = f"layers.{index + 1}"
        return self.skip_norm(update, residual, f"{at}.{first}", f"{at}.input_norm")

    @property
    def epsilon(self) -> float:
        return float(getattr(self.config, "rms_norm_eps", 1e-5))


class _Gated(_Decoder):
    """Rotary positions, root-mean-square norms, gated feed-forward layers."""

    norm_op = "SkipSimplifiedLayerNormalization"

    def scale(self, source: str) -> Weight:
        weight = self.weights[f"{source}.weight"]
        return plus_one(weight) if self.config.model_type == "gemma" else weight

    def write(self, signature: Signature) -> Structure:
        graph = self.graph
        tables = _rotary_tables(graph, self.backbone.rotary_emb)
        norm = graph.weight("layers.0.input_norm.weight", self.scale("layers.0.input_layernorm"))
        normed, residual = self.norm("inputs_embeds", norm, "/layers.0/input_norm"), "inputs_embeds"
        for index in range(self.layers):
            at = f"layers.{index}"
            attention = f"{at}.self_attn"
            mixed = self.attend(self.queries(normed, at), index, *tables)
            attended = self.linear(mixed, f"{at}.o_proj", attention, "o_proj")
            residual, normed = self.skip_norm(
                attended, residual, f"{at}.post_attention_layernorm", f"{at}.mlp_norm"
            )
            gate = self.linear(normed, f"{at}.gate", f"{at}.mlp", "gate_proj")
            up = self.linear(normed, f"{at}.up", f"{at}.mlp", "up_proj")
            if self.config.hidden_act == "silu":
                sigmoid = graph.node("Sigmoid", (gate,), f"/{at}/sigmoid")
                active = graph.node("Mul", (gate, sigmoid), f"/{at}/silu")
            else:
                active = graph.node("Gelu", (gate,), f"/{at}/gelu", approximate="tanh")
            product = graph.node("Mul", (active, up), f"/{at}/product")
            down = self.linear(product, f"{at}.down", f"{at}.mlp", "down_proj")
            residual, normed = self.next_norm(down, residual, index, "input_layernorm", "norm")
        return graph.structure(signature, "language_model")

    def norm(self, hidden: str, weight: str, name: str) -> str:
        return self.graph.node(
            "SimplifiedLayerNormalization",
            (hidden, weight),
            name,
            axis=-1,
            epsilon=self.epsilon,
            stash_type=1,
        )

    def queries(self, normed: str, at: str) -> tuple[str, str, str]:
        """What attention reads: one packed product, or three where queries and keys have norms per head."""
        attention = f"{at}.self_attn"
        if f"{attention}.q_norm.weight" not in self.weights:
            return self.linear(normed, f"{at}.qkv", attention, "q_proj", "k_proj", "v_proj"), "", ""
        answers = []
        for part, heads in (("q", self.heads), ("k", self.kv_heads)):
            product = self.linear(normed, f"{at}.{part}", attention, f"{part}_proj")
            name = f"{at}.{part}_norm"
            apart = self.graph.constant(f"{name}.apart", np.array([0, 0, heads, -1]))
            together = self.graph.constant(f"{name}.together", np.array([0, 0, -1]))
            rows = self.graph.node("Reshape", (product, apart), f"/{name}/apart")
            weight = self.graph.weight(f"{name}.weight", self.scale(f"{attention}.{part}_norm"))
            even = self.norm(rows, weight, f"/{name}")
            answers.append(self.graph.node("Reshape", (even, together), f"/{name}/together"))
        return answers[0], answers[1], self.linear(normed, f"{at}.v", attention, "v_proj")


class _Opt(_Decoder):
    """Learned positions, norms with a bias, plain feed-forward layers."""

    norm_op = "SkipLayerNormalization"
    OFFSET = 2  # rows of the table of positions before position 0

    def __init__(self, backbone: Any, weights: Weights) -> None:
        super().__init__(backbone, _below(weights, "decoder."))

    def write(self, signature: Signature) -> Structure:
        graph = self.graph
        residual = graph.node("Add", ("inputs_embeds", self.positions()), "/positions/added")
        normed = graph.node(
            "LayerNormalization",
            (residual, *self.norm_inputs("layers.0.self_attn_layer_norm", "layers.0.input_norm")),
            "/layers.0/input_norm",
            axis=-1,
            epsilon=self.epsilon,
        )
        for index in range(self.layers):
            at = f"layers.{index}"
            packed = self.linear(normed, f"{at}.qkv", f"{at}.self_attn", "q_proj", "k_proj", "v_proj")
            mixed = self.attend((packed, "", ""), index)
            attended = self.linear(mixed, f"{at}.out_proj", f"{at}.self_attn", "out_proj")
            residual, normed = self.skip_norm(attended, residual, f"{at}.final_layer_norm", f"{at}.mlp_norm")
            active = graph.node("Relu", (self.linear(normed, f"{at}.fc1", at, "fc1"),), f"/{at}/relu")
            down = self.linear(active, f"{at}.fc2", at, "fc2")
            residual, normed = self.next_norm(
                down, residual, index, "self_attn_layer_norm", "final_layer_norm"
            )
        return graph.structure(signature, "language_model")

    def positions(self) -> str:
        """Rows (sequence, hidden) of the table for the tokens that are read now."""
        graph = self.graph
        count = graph.node("Shape", ("inputs_embeds",), "/positions/count", start=1, end=2)
        offset = graph.constant("offset", np.array([self.OFFSET]))
        end = graph.node("Add", ("/lengths/shape.out", offset), "/positions/end")
        start = graph.node("Sub", (end, count), "/positions/start")
        axis = graph.constant("first_axis", np.array([0]))
        table = graph.weight("positions.weight", self.weights["embed_positions.weight"])
        return graph.node("Slice", (table, start, end, axis), "/positions/rows")


def _below(weights: Weights, prefix: str) -> Mapping[str, Weight]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


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
    frequencies = graph.constant("rotary.inv_freq", rotary.inv_freq.detach().float().cpu().numpy()[None])
    angles = graph.node("Mul", (column, frequencies), "/rotary/angles")
    return graph.node("Cos", (angles,), "/rotary/cos"), graph.node("Sin", (angles,), "/rotary/sin")
