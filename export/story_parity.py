"""The end of the parity gate: stories drawn by the packed bundle and by the float32 one, compared.

Knows what is compared ([IMG] states, latents, pictures) and how; runs as a child process
(`python -m storyv_lite.export.story_parity BUNDLE REFERENCE`) with the settings a user draws with, every
graph optimization among them. Each bundle looks at its own pictures, so errors of a frame reach the next.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.export.calibrate import FRAMES, Listener
from storyv_lite.export.verify import compare, run_child
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story

EQUAL_DB = 200.0  # of pictures that are equal to the last bit
COMPARED = 2  # stories, the first of those that calibrate
WINDOW = 8  # pixels; similarity is the mean over squares of this side

Array = NDArray[Any]
Drawn = Mapping[str, Array]  # image_states (n, tokens, hidden), latents (m, C, h, w), pictures (m, H, W, 3)


def draw_compared(bundle: Path, stories: Sequence[Mapping[str, Any]], count: int = COMPARED) -> Drawn:
    """What the bundle makes of the first `count` stories."""
    listener = Listener(open_backend("cpu", threads=1))
    pipeline = StoryPipeline(Bundle.open(bundle, verify=False), listener)
    pictures = [
        frame.image
        for index, story in enumerate(stories[:count])
        for frame in pipeline.draw(
            Story(tuple(Caption(text) for text in story["captions"][:FRAMES])),
            seed=int(story.get("seed", index)),
        )
    ]
    pipeline.close()
    states = [feed["image_states"][0] for feed in listener.feeds.get(Component.MAPPER, [])]
    latents = [feed["latents"][0] for feed in listener.feeds[Component.VAE_DECODER]]
    return {
        "image_states": np.stack(states) if states else np.zeros((0, 1, 1), np.float32),
        "latents": np.stack(latents),
        "pictures": np.stack(pictures),
    }


def measure(drawn: Drawn, reference: Drawn) -> dict[str, float]:
    """Cosines of [IMG] states and latents and similarities of pictures, each over all frames together."""
    figures = {}
    if len(reference["image_states"]):
        figures["image_states_cosine"] = compare(drawn["image_states"], reference["image_states"]).cosine
    figures["latent_cosine"] = compare(drawn["latents"], reference["latents"]).cosine
    error = np.square(drawn["pictures"].astype(np.float64) - reference["pictures"]).mean()
    figures["psnr_db"] = float(min(EQUAL_DB, 10 * np.log10(255.0**2 / max(error, 1e-20))))
    pairs = zip(drawn["pictures"], reference["pictures"], strict=True)
    figures["ssim"] = float(np.mean([ssim(one, other) for one, other in pairs]))
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Structural similarity (Wang et al., 2004) of pictures (H, W, 3) in grey, by squares side by side."""

    def squares(image: NDArray[np.uint8]) -> Array:
        grey = image.mean(axis=2)
        height, width = (size // WINDOW for size in grey.shape)
        cut = grey[: height * WINDOW, : width * WINDOW].reshape(height, WINDOW, width, WINDOW)
        found: Array = cut.transpose(0, 2, 1, 3).reshape(-1, WINDOW * WINDOW)
        return found

    a, b = squares(one), squares(other)
    mean_a, mean_b = a.mean(axis=1), b.mean(axis=1)
    both = ((a - mean_a[:, None]) * (b - mean_b[:, None])).mean(axis=1)
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_a * mean_b + light) * (2 * both + contrast)
    return float(
        np.mean(alike / ((mean_a**2 + mean_b**2 + light) * (a.var(axis=1) + b.var(axis=1) + contrast)))
    )


def verify_stories(bundle: Path, wide: Path, stories: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Draw the compared stories with both bundles in one child process; what it measured.

    Raises `ParityError` when a story cannot be drawn.
    """
    asked = json.dumps(list(stories[:COMPARED]))
    measured: dict[str, float] = run_child(__name__, [str(bundle), str(wide)], asked)
    return measured


def _main(bundle: Path, wide: Path) -> None:
    stories = json.loads(sys.stdin.read())
    print(json.dumps(measure(draw_compared(bundle, stories), draw_compared(wide, stories))))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
