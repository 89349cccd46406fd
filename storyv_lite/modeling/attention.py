"""Attention that remembers where each word looked, and the loss that holds characters inside their masks.

Knows diffusers' attention modules and StoryGPT-V's supervision (specification A.4). Nothing of diffusers is
patched: processors are exchanged through `set_attn_processor`.
"""

import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

# Cross-attention on these grids (cells per side) is supervised: for SD 1.5 at 512 px that is every level but
# the finest, for the toon model every level but 4x4, where two characters share a cell.
SUPERVISED_GRIDS = (8, 16, 32)
PLAIN_GRID = 16  # cells per side up to which attention is plain on an accelerator too (docs/decisions/0030)


class MatmulAttnProcessor:
    """Attention as two matrix products and a softmax: at short lengths faster on a CPU than the fused kernel.

    Its gradients are numbers whatever the scores; those of the fused kernels of a GPU are not.

    With `record`, `probabilities` holds the last softmax: (B, heads, queries, tokens), part of the graph.
    """

    def __init__(self, record: bool = False) -> None:
        self.record = record
        self.probabilities: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x: Tensor) -> Tensor:
            return x.reshape(*x.shape[:2], int(attn.heads), -1).transpose(1, 2)

        query, key, value = (
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(source)),
            heads(attn.to_v(source)),
        )
        probabilities = (query * attn.scale @ key.transpose(-1, -2)).softmax(dim=-1)
        if self.record:
            self.probabilities = probabilities
        out: Tensor = attn.to_out[0]((probabilities.to(value.dtype) @ value).transpose(1, 2).flatten(2))
        return out


def attend_plainly(unet: UNet2DConditionModel, record: bool = False) -> list[MatmulAttnProcessor]:
    """Give `unet` the attentions that gradients go through; fused ones only for many cells on an accelerator.

    With `record`, those of the supervised cross-attentions remember where each word looked, and are returned.
    """
    on_cpu = unet.device.type == "cpu"
    processors: dict[str, MatmulAttnProcessor | AttnProcessor2_0] = {}
    for name in unet.attn_processors:
        side = _grid(name, unet)
        supervised = record and ".attn2." in name and side in SUPERVISED_GRIDS
        plain = supervised or on_cpu or side <= PLAIN_GRID
        processors[name] = MatmulAttnProcessor(supervised) if plain else AttnProcessor2_0()
    unet.set_attn_processor(dict(processors))  # diffusers empties the dictionary it is given
    return [p for p in processors.values() if isinstance(p, MatmulAttnProcessor) and p.record]


def attention_mask_loss(
    probabilities: Sequence[Tensor], masks: Tensor, batch_index: Tensor, words: Tensor
) -> Tensor:
    """Mean attention outside minus inside each character's mask; between -1 and 1, lower is better.

    `probabilities` are recorded softmaxes (B, heads, side*side, T); character k is told by the tokens
    `words[k]` (K, T) in {0,1} of sample `batch_index[k]` and covers `masks[k]` (K, S, S) in [0,1]; one that
    no token tells of does not count. Summed over its tokens, averaged over heads, then over the characters of
    a sample, over samples (those without characters count 0) and over modules. With the token of the name
    alone it is specification A.4.
    """
    batch = probabilities[0].shape[0]
    batch_index = batch_index.clamp(max=batch - 1)
    counts = masks.new_zeros(batch).index_add(0, batch_index, words.amax(1).to(masks.dtype))
    losses = []
    for attention in probabilities:
        side = math.isqrt(attention.shape[2])
        inside = _resize(masks, side).flatten(1)[:, None]  # (K, 1, side*side)
        outside = 1 - inside
        told = words.to(attention.dtype)[:, None, :, None]
        looked = (attention[batch_index] @ told)[..., 0].float()  # (K, heads, side*side)
        in_mean = (looked * inside).sum(-1) / (inside.sum(-1) + 1e-5)
        out_mean = (looked * outside).sum(-1) / (outside.sum(-1) + 1e-5)
        per_character = (out_mean - in_mean).mean(1)
        per_sample = masks.new_zeros(batch).index_add(0, batch_index, per_character)
        losses.append((per_sample / (counts + 1e-5)).mean())
    return torch.stack(losses).mean()


def _grid(name: str, unet: UNet2DConditionModel) -> int:
    """Cells per side where the attention called `name` works."""
    coarsest = len(unet.config.block_out_channels) - 1
    block, index = name.split(".")[:2]
    match block:
        case "down_blocks":
            level = int(index)
        case "up_blocks":
            level = coarsest - int(index)
        case _:  # mid_block
            level = coarsest
    return int(unet.config.sample_size) >> level


def _resize(masks: Tensor, side: int) -> Tensor:
    resized: Tensor = torch.nn.functional.interpolate(
        masks[:, None], size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[:, 0]
