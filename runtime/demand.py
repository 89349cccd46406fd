"""What a story asks of a model, counted before anything is loaded: tokens, portraits, evaluations.

Knows tokenizers and the limits of the context; not what anything takes in memory.
"""

from collections.abc import Sequence

from storyv_lite.manifest import Context
from storyv_lite.runtime.context import REDUCED, most_tokens
from storyv_lite.runtime.footprint import Demand
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.story_context import lengths, most_written
from storyv_lite.story import Caption


def demand_of(
    model: Model,
    captions: Sequence[Caption],
    guidance_scale: float,
    limits: Context,
    steps: int = 1,
    spell_out: bool = False,
) -> Demand:
    """What a story asks for when it is drawn in order, with pictures in its context, within `limits`.

    `steps` are those of denoising, for each picture; with `spell_out` frames are told at their longest.
    """
    told, asked = lengths(model, [caption.text for caption in captions], spell_out)
    tokens = most_tokens(told, asked, limits)
    longest = 1 + max(told) + max(asked)
    if len(captions) > limits.frames or 1 + sum(told[:-1]) + max(asked) > limits.tokens:
        longest = max(longest, int(REDUCED * tokens))  # a reduced context is read anew in one call
    return Demand(
        frames=len(captions),
        tokens=tokens,
        longest_read=min(longest, tokens),
        characters=len(model.named(captions[0].text)),
        guided=guidance_scale > 1,
        steps=steps,
        written=most_written(model) if spell_out else 0,
    )
