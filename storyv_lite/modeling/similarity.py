"""How much a picture is like a text or like another picture, by a checkpoint's own two encoders.

Knows the caption encoder and the picture encoder as they were trained together; not how text becomes tokens.
The caption encoder learned on with the denoiser, so its similarities compare runs of one checkpoint.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storyv_lite.modeling.checkpoints import has_component, load_component

TEXTS, PICTURES = "text_encoder", "vision_encoder"


class Similarity:
    """Unit vectors of texts and pictures in one space."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises `BundleError` when an encoder is missing or damaged."""
        self._texts, self._pictures = _load(checkpoint / TEXTS), _load(checkpoint / PICTURES)
        self.text_tokens: int = self._texts.config.max_position_embeddings

    @staticmethod
    def is_in(checkpoint: Path) -> bool:
        """Whether a folder holds both encoders."""
        return has_component(checkpoint / TEXTS) and has_component(checkpoint / PICTURES)

    @torch.no_grad()
    def texts(self, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids (N, T), padded with the end token, to vectors (N, D)."""
        return _unit(self._texts(input_ids=torch.from_numpy(input_ids)).pooler_output)

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures (N, S, S, 3) to vectors (N, D)."""
        size = self._pictures.config.image_size
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        pixels = nn.functional.interpolate(pixels, size=(size, size), mode="area")
        return _unit(self._pictures(pixel_values=pixels).image_embeds)


def _load(folder: Path) -> Any:
    return load_component(folder)


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = nn.functional.normalize(vectors.float(), dim=-1).numpy()
    return unit
