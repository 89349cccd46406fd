"""What the denoiser reads: a caption's states with each character's picture merged into its name.

Knows the three networks that make the conditioning and what they are fed (specification A.3); not where
captions and pictures come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storyv_lite.checkpoint import train_command
from storyv_lite.errors import BundleError
from storyv_lite.runtime.tokenizer import EncodedCaption, TextTokenizer
from storyv_lite.train.data import as_pictures
from storyv_lite.train.text_tokenizer import TOKENIZER_FILE

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ConditioningInputs:
    """A batch of captions; character k is picture `picture_index[k]` at [batch_index[k], positions[k]]."""

    input_ids: Tensor  # (B, T)
    pixel_values: Tensor  # (M, 3, S, S), each picture once
    picture_index: Tensor  # (K,)
    batch_index: Tensor  # (K,)
    positions: Tensor  # (K,)

    def to(self, device: torch.device | str) -> "ConditioningInputs":
        return ConditioningInputs(*(tensor.to(device) for tensor in vars(self).values()))


@dataclass(frozen=True)
class Conditioner:
    """The networks that turn captions and pictures into conditioning."""

    text_encoder: nn.Module
    character_encoder: nn.Module
    fusion: nn.Module

    def __call__(self, inputs: ConditioningInputs) -> Tensor:
        """Conditioning (B, T, cross_attention_dim)."""
        states: Tensor = self.text_encoder(input_ids=inputs.input_ids).last_hidden_state
        if not len(inputs.positions):
            return states
        embeds = self.character_encoder(pixel_values=inputs.pixel_values).image_embeds
        fused: Tensor = self.fusion(
            states, embeds[inputs.picture_index], inputs.batch_index, inputs.positions
        )
        return fused


def load_text_tokenizer(out: Path, text_tokens: int) -> TextTokenizer:
    """The caption encoder's tokenizer of a checkpoint folder. Raises `BundleError` when it has none."""
    path = out / TOKENIZER_FILE
    if not path.is_file():
        raise BundleError(f"`{path}` is missing", hint=train_command(out, "image_text"))
    return TextTokenizer(path, text_tokens)


def with_portraits(batch: Sequence[EncodedCaption], portraits: Mapping[str, Pixels]) -> ConditioningInputs:
    """Captions of which every name in `portraits` gets its picture, as at inference."""
    slots = {name: slot for slot, name in enumerate(portraits)}
    return collate(batch, list(portraits.values()), [[slots[n] for n in caption.names] for caption in batch])


def collate(
    batch: Sequence[EncodedCaption], pictures: Sequence[Pixels], chosen: Sequence[Sequence[int]]
) -> ConditioningInputs:
    """Put captions together; `chosen[b][i]` is the picture (S,S,3) of mention i of caption b."""
    triples = [
        (slot, row, int(position))
        for row, (caption, slots) in enumerate(zip(batch, chosen, strict=True))
        for slot, position in zip(slots, caption.positions, strict=True)
    ]
    picture_index, batch_index, positions = torch.tensor(triples, dtype=torch.long).reshape(-1, 3).T
    used, picture_index = picture_index.unique(return_inverse=True)
    return ConditioningInputs(
        torch.from_numpy(np.concatenate([caption.ids for caption in batch])),
        pixel_values([pictures[slot] for slot in used.tolist()]),
        picture_index,
        batch_index,
        positions,
    )


def pixel_values(pictures: Sequence[Pixels]) -> Tensor:
    """Pictures (S,S,3) as the picture encoders read them: (M,3,S,S) in [-1,1]; empty when there are none."""
    if not pictures:
        return torch.zeros(0)
    pixels = torch.from_numpy(np.stack(pictures))
    return as_pictures(pixels.permute(0, 3, 1, 2))
