"""How well the predicted conditioning matches what it stands for, on validation stories with true pictures.

Distances say little by themselves, so the main figure is retrieval: among the plain caption and those with
one character exchanged, is the right one nearest? Knows nothing about how the networks were trained.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storyv_lite.modeling.mapper import Mapper
from storyv_lite.modeling.story_lm import StoryLM
from storyv_lite.runtime.tokenizer import TextTokenizer
from storyv_lite.train.conditioning import Conditioner, Pixels, with_portraits
from storyv_lite.train.resolution import reference_keys
from storyv_lite.train.telling import Telling, tell
from storyv_lite.train.toonworld.captions import plain, says_position
from storyv_lite.train.toonworld.scene import Scene
from storyv_lite.train.toonworld.splits import story_seed

FRAMES, TOGETHER = 8, 4  # of a validation story; stories at a time


@dataclass(frozen=True)
class Aligned:
    """The networks on both sides."""

    lm: StoryLM
    mapper: Mapper
    conditioner: Conditioner
    vision_encoder: nn.Module
    tokenizer: TextTokenizer
    portraits: Mapping[str, Pixels]

    def conditioning(self, captions: list[str], device: str) -> Tensor:
        """What Char-LDM makes of captions with portraits: (N, T, C)."""
        encoded = [self.tokenizer.encode(caption, self.portraits) for caption in captions]
        return self.conditioner(with_portraits(encoded, self.portraits).to(device)).float()


def pooled_pictures(vision_encoder: nn.Module, pixels: Tensor) -> Tensor:
    """The pooled vectors (N, C) of pictures (N,3,S,S); (0, C) when there are none."""
    if not len(pixels):
        return pixels.new_zeros(0, vision_encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    pooled: Tensor = vision_encoder.vision_model(pixel_values=pixels).pooler_output  # type: ignore[operator]
    return pooled


@torch.no_grad()
def alignment(
    aligned: Aligned, batch_of: Callable[..., Any], stories: int, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    """`l2` per token, `cosine`, and `retrieval`: [right, of] per kind of mention as in `resolution`."""
    tellings = [tell(story_seed("validation", seed, index), FRAMES, "validation") for index in range(stories)]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    distances, cosines = [], []
    for begin in range(0, stories, TOGETHER):
        chunk = tellings[begin : begin + TOGETHER]
        batch = batch_of(chunk, np.random.default_rng(seed), 0.0, 0.0).to(device)
        hidden = aligned.lm(batch.stories, pooled_pictures(aligned.vision_encoder, batch.pixels))
        predicted = aligned.mapper(aligned.lm.image_states(hidden, batch.stories)).float()
        target = aligned.conditioner(batch.targets).float()
        distances.append((predicted - target).norm(dim=-1).mean())
        cosines.append(torch.cosine_similarity(predicted, target, dim=-1).mean())
        for row, telling in enumerate(chunk):
            for frame in range(FRAMES):
                _retrieve(aligned, telling, frame, predicted[row * FRAMES + frame], counts, device)
    return {
        "l2": float(torch.stack(distances).mean()),
        "cosine": float(torch.stack(cosines).mean()),
        "retrieval": {key: counts[key] for key in sorted(counts)},
    }


def _retrieve(
    aligned: Aligned,
    telling: Telling,
    frame: int,
    predicted: Tensor,
    counts: dict[str, list[int]],
    device: str,
) -> None:
    """Compare one prediction (T, C) with its plain caption and every exchange of one character."""
    scene, placed = telling.scenes[frame], says_position(telling.reference[frame])
    for name in telling.names[frame]:
        others = [other for other in aligned.portraits if other not in telling.names[frame]]
        cast = [name, *others]
        captions = [plain(exchange(scene, name, other), placed) for other in cast]
        distances = (aligned.conditioning(captions, device) - predicted).norm(dim=-1).mean(-1)
        for key in reference_keys(telling, frame, name):
            counts[key][0] += int(distances.argmin() == 0)
            counts[key][1] += 1


def exchange(scene: Scene, name: str, other: str) -> Scene:
    """`scene` with one character in place of another."""
    actors = (replace(actor, name=other) if actor.name == name else actor for actor in scene.actors)
    return replace(scene, actors=tuple(actors))
