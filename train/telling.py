"""Stories as the language model reads them: the texts of every frame, and which frames stand in the context.

Knows texts and windows; nothing about pictures, tokens or weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np

from storyv_lite.runtime.context import RECENT
from storyv_lite.runtime.tokenizer import mentions
from storyv_lite.train.toonworld.scene import PLACES, Scene
from storyv_lite.train.toonworld.stories import sample_story


@dataclass(frozen=True)
class Telling:
    """One story; `plain` says in fixed words what `reference` tells a reader; `names` are those shown."""

    seed: int
    reference: tuple[str, ...]
    original: tuple[str, ...]
    plain: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    scenes: tuple[Scene, ...]

    def __len__(self) -> int:
        return len(self.original)

    @property
    def placed(self) -> tuple[bool, ...]:
        """Whether each caption names a place, as the runtime reads it: by its very word."""
        return tuple(bool(mentions(text, PLACES)) for text in self.reference)


def tell(seed: int, frames: int, split: str) -> Telling:
    """The texts of one toon story."""
    story = sample_story(seed, frames, split)
    columns = zip(*((f.reference, f.original, f.plain, f.names, f.scene) for f in story.frames), strict=True)
    return Telling(story.seed, *columns)


def story_length(rng: np.random.Generator, shortest: int, longest: float) -> int:
    """A number of frames; short stories are as frequent as long ones are many times rarer (log-uniform)."""
    return round(exp(rng.uniform(log(shortest), log(longest))))


def window(
    names: Sequence[Sequence[str]],
    placed: Sequence[bool],
    rng: np.random.Generator,
    drop_prob: float,
    context_frames: int,
) -> list[tuple[int, bool]]:
    """The frames of a story that stand in the context, in order, and whether each is a target.

    A story of more than `context_frames` is read in the reduced context of bounded memory, a shorter one with
    `drop_prob`: what came before some frame is reduced to the frames that introduce a character, the one that
    named a place last and the ones right before it; from there on the context grows again, to
    `context_frames` at most. Frames whose antecedents may be gone are no targets.
    """
    count = len(names)
    if count <= context_frames and (count < RECENT + 3 or rng.random() >= drop_prob):
        return [(frame, True) for frame in range(count)]
    first_target = int(rng.integers(RECENT + 2, count))
    place = max((frame for frame in range(first_target) if placed[frame]), default=-1)
    met: set[str] = set()
    kept: list[tuple[int, bool]] = []
    for frame, shown in enumerate(names):
        whole = len(kept) == frame  # nothing was dropped before this frame
        if frame >= first_target - RECENT or frame == place or not met.issuperset(shown):
            kept.append((frame, whole or frame >= first_target))
        met.update(shown)
    return kept[:context_frames]


def told(telling: Telling, frame: int, rng: np.random.Generator, original_prob: float) -> tuple[str, str]:
    """A caption as a reader gets it, and in plain words what it says."""
    original = rng.random() < original_prob
    return telling.original[frame] if original else telling.reference[frame], telling.plain[frame]
