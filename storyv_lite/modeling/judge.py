"""The judge: a small convolutional network that says what one picture shows.

Knows pictures and the words of the cartoon world (they stand in its configuration); nothing of stories,
captions or of the networks that draw. It shares no weight with those, and nothing that is drawn is ever
chosen by it: it only measures.
For every cast member it finds where to look (attention over the grid of features): once at the figure, whose
vector is the character's own and tells presence, and once at what belongs to it but may lie beside it, as a
ball does. Action, prop and position are read from both. Which things are anywhere in the picture is said
cell by cell: what is as small as a ball is otherwise learned late.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from numpy.typing import NDArray
from torch import Tensor, nn

from storyv_lite.modeling.autoencoder import ResidualBlock

PATCH = 4  # pixels folded into channels: most of the time would go into full resolution
LOOKS = 2  # at the figure, at what belongs to it
HIDDEN = 128  # width of the reader of details
CHUNK = 32  # pictures read at once


class Scores(NamedTuple):
    """Logits and features of B pictures, K cast members, C channels."""

    places: Tensor  # (B, places)
    present: Tensor  # (B, K)
    positions: Tensor  # (B, K, positions)
    actions: Tensor  # (B, K, actions)
    props: Tensor  # (B, K, props + 1), the last one: none
    things: Tensor  # (B, props), whether one of each is anywhere in the picture
    features: Tensor  # (B, C), of the whole picture
    characters: Tensor  # (B, K, C), of what was seen where each cast member would be


class Verdict(NamedTuple):
    """What N pictures show. Details of who is absent mean nothing."""

    places: NDArray[np.bool_]  # (N, places): at most one is true, none where no place is likelier than not
    present: NDArray[np.bool_]  # (N, K)
    positions: NDArray[np.int64]  # (N, K)
    actions: NDArray[np.int64]  # (N, K)
    props: NDArray[np.int64]  # (N, K); the number of props means none
    features: NDArray[np.float32]  # (N, C)
    characters: NDArray[np.float32]  # (N, K, C)


class Judge(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Reads pictures (B,3,S,S) in [-1,1]; any S, they are shrunk by area to `image_size`."""

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        cast: tuple[str, ...],
        places: tuple[str, ...],
        positions: tuple[str, ...],
        actions: tuple[str, ...],
        props: tuple[str, ...],
        image_size: int = 128,
        block_out_channels: tuple[int, ...] = (48, 96, 144),
        layers_per_block: int = 2,
    ) -> None:
        super().__init__()
        width = block_out_channels[0]
        layers: list[nn.Module] = [nn.PixelUnshuffle(PATCH), nn.Conv2d(3 * PATCH**2, width, 3, padding=1)]
        for level, channels in enumerate(block_out_channels):
            if level:
                layers += [nn.SiLU(), nn.Conv2d(width, channels, 3, stride=2, padding=1)]
            layers += [ResidualBlock(channels) for _ in range(layers_per_block)]
            width = channels
        self.trunk = nn.Sequential(*layers, nn.SiLU())
        self.where = nn.Conv2d(width, LOOKS * len(cast), 1)
        self.thing = nn.Conv2d(width, len(props), 1)
        self.place = nn.Linear(width, len(places))
        self.present = nn.Parameter(0.02 * torch.randn(len(cast), width))
        self.absent = nn.Parameter(torch.zeros(len(cast)))
        self.details = nn.Linear(LOOKS * (width + 2), HIDDEN)
        self.member = nn.Parameter(torch.zeros(len(cast), HIDDEN))
        self.detail = nn.Linear(HIDDEN, len(positions) + len(actions) + len(props) + 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Scores:
        size = self.config.image_size
        if pixels.shape[-1] != size:
            pixels = nn.functional.interpolate(pixels, size=(size, size), mode="area")
        grid = self.trunk(pixels.contiguous(memory_format=torch.channels_last))
        cells = grid.flatten(2).float()  # (B, C, cells)
        looks = self.where(grid).flatten(2).float().softmax(-1)  # (B, K, cells)
        at = _coordinates(grid.shape[-1]).to(cells).expand(len(cells), -1, -1)
        seen = torch.cat([cells.transpose(1, 2), at], dim=-1)
        figures, beside = (looks @ seen).chunk(LOOKS, dim=1)  # (B, K, C + 2) each
        features, characters = cells.mean(-1), figures[..., : cells.shape[1]]
        hidden = self.details(torch.cat([figures, beside], dim=-1)) + self.member
        counts = [len(self.config[name]) for name in ("positions", "actions", "props")]
        read = self.detail(nn.functional.silu(hidden)).float()
        positions, actions, props = read.split([*counts[:2], counts[2] + 1], dim=-1)
        present = (characters * self.present).sum(-1) - self.absent
        things = self.thing(grid).flatten(2).float().amax(-1)
        place = self.place(features).float()
        return Scores(place, present, positions, actions, props, things, features, characters)

    @torch.no_grad()
    def read(self, images: NDArray[np.uint8]) -> Verdict:
        """What pictures (N,H,H,3) show; a label is given where it is likelier than not (spec F.1)."""
        chunks: list[Verdict] = []
        for start in range(0, len(images), CHUNK):
            pixels = torch.from_numpy(images[start : start + CHUNK]).permute(0, 3, 1, 2)
            scores = Scores(*(values.cpu() for values in self(pixels.to(self.device) / 127.5 - 1)))
            positions, actions, props = (logits.argmax(-1).numpy() for logits in scores[2:5])
            chunks.append(
                Verdict(
                    (scores.places.softmax(-1) > 0.5).numpy(),
                    (scores.present > 0).numpy(),
                    positions,
                    actions,
                    props,
                    scores.features.numpy(),
                    scores.characters.numpy(),
                )
            )
        return joined(chunks)


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Several verdicts as one, in order."""
    return Verdict(*(np.concatenate(arrays) for arrays in zip(*verdicts, strict=True)))


def _coordinates(size: int) -> Tensor:
    """Row and column of each cell in [-1,1], (size * size, 2)."""
    line = torch.linspace(-1, 1, size)
    return torch.cartesian_prod(line, line)
