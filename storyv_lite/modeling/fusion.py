"""Fusion of a character's name with its picture: the token's embedding and the image's become one embedding.

Knows two vectors per character and where the token stands; not which encoders they come from. Module names
are those of the published StoryGPT-V weights.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class FusionMLP(nn.Module):
    """Layer norm, two linear layers, exact GELU between them."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(in_features)
        self.fc1 = nn.Linear(in_features, out_features)
        self.fc2 = nn.Linear(out_features, out_features)

    def forward(self, hidden_states: Tensor) -> Tensor:
        result: Tensor = self.fc2(nn.functional.gelu(self.fc1(self.layernorm(hidden_states))))
        return result


class Fusion(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The fused embedding of StoryGPT-V (specification A.3)."""

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, hidden_size: int = 768) -> None:
        super().__init__()
        self.mlp1 = FusionMLP(2 * hidden_size, hidden_size)
        self.mlp2 = FusionMLP(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size)

    def forward(
        self, hidden_states: Tensor, image_embeds: Tensor, batch_index: Tensor, positions: Tensor
    ) -> Tensor:
        """Text states (B,T,C) with character k's picture (K,C) merged in at [batch_index[k], positions[k]].

        Every other position comes back as it was; with no character the result equals the input.
        """
        tokens = hidden_states[batch_index, positions]
        merged = self.mlp1(torch.cat([tokens, image_embeds.to(tokens.dtype)], dim=-1)) + tokens
        fused = self.layer_norm(self.mlp2(merged) + merged)
        return hidden_states.index_put((batch_index, positions), fused.to(hidden_states.dtype))
