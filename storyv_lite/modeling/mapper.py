"""The mapper: states of the [IMG] tokens become the conditioning of the denoiser (specification C.1).

A pre-norm transformer of an encoder over the [IMG] tokens and a decoder over learned queries, one query per
text position. Written as plain linear layers and one attention call: torch's own nn.Transformer takes a fused
path in inference that exporters cannot follow, and packs three projections that quantizers want to see apart.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of `hidden_states` (B, T, C) over `context` (B, S, C), without a mask."""

    def __init__(self, hidden_size: int, num_attention_heads: int) -> None:
        super().__init__()
        self.heads = num_attention_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.k_proj = nn.Linear(hidden_size, hidden_size)
        self.v_proj = nn.Linear(hidden_size, hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, context: Tensor) -> Tensor:
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states in (self.q_proj(hidden_states), self.k_proj(context), self.v_proj(context))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """One pre-norm layer; with `cross` it also reads the encoder's output."""

    def __init__(
        self, hidden_size: int, num_attention_heads: int, intermediate_size: int, cross: bool
    ) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_size, num_attention_heads)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.cross_attn = Attention(hidden_size, num_attention_heads) if cross else None
        self.norm2 = nn.LayerNorm(hidden_size) if cross else None
        self.linear1 = nn.Linear(hidden_size, intermediate_size)
        self.linear2 = nn.Linear(intermediate_size, hidden_size)
        self.norm3 = nn.LayerNorm(hidden_size)

    def forward(self, hidden_states: Tensor, memory: Tensor | None = None) -> Tensor:
        normed = self.norm1(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, normed)
        if self.cross_attn is not None and self.norm2 is not None and memory is not None:
            hidden_states = hidden_states + self.cross_attn(self.norm2(hidden_states), memory)
        out: Tensor = hidden_states + self.linear2(F.relu(self.linear1(self.norm3(hidden_states))))
        return out


class Mapper(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """[IMG] states (B, image_tokens, hidden_size_in) to conditioning (B, text_tokens, cross_attention_dim).

    It is fed hidden states plus the [IMG] rows' own embeddings; the caller adds the rows.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        hidden_size_in: int,
        hidden_size: int,
        layers: int,
        heads: int,
        intermediate_size: int,
        image_tokens: int,
        text_tokens: int,
        cross_attention_dim: int,
    ) -> None:
        super().__init__()
        shape = (hidden_size, heads, intermediate_size)
        self.proj_in = nn.Linear(hidden_size_in, hidden_size)
        self.query_embeds = nn.Parameter(torch.randn(1, text_tokens, hidden_size))
        self.encoder = nn.ModuleList(Layer(*shape, cross=False) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(hidden_size)
        self.decoder = nn.ModuleList(Layer(*shape, cross=True) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(hidden_size)
        self.proj_out = nn.Linear(hidden_size, cross_attention_dim)

    def forward(self, image_states: Tensor) -> Tensor:
        memory = self.proj_in(image_states)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        states = self.query_embeds.expand(image_states.shape[0], -1, -1)
        for layer in self.decoder:
            states = layer(states, memory)
        out: Tensor = self.proj_out(self.decoder_norm(states))
        return out
