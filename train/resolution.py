"""How well a story language model resolves references: which names it writes where the caption says "she".

Measured on validation stories, teacher-forced: at each name of the plain caption that the caption itself
does not hold, is the name the most likely next piece? Knows neither pictures nor training.
"""

from collections import defaultdict
from typing import Any

import torch

from storyv_lite.modeling.packing import Kind, PackedFrame, Vocabulary, collate, pack
from storyv_lite.modeling.story_lm import StoryLM
from storyv_lite.prompt import query, text_history
from storyv_lite.train.language_tokenizer import PAD
from storyv_lite.train.telling import Telling, tell
from storyv_lite.train.toonworld.cast import CAST, member
from storyv_lite.train.toonworld.references import OBJECT
from storyv_lite.train.toonworld.splits import story_seed

FRAMES, TOGETHER = 12, 4  # of a validation story; stories at a time


@torch.no_grad()
def resolution(
    lm: StoryLM, vocabulary: Vocabulary, stories: int, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    """Shares of names right, over captions-only contexts of validation stories.

    `direct` sees the whole context while it writes, `image_tokens` only the [IMG] tokens. In each: `resolved`
    (names the caption leaves out), `named` (the others), `frames` (every piece right), `by_reference` and
    `by_distance` (frames since the name was last written), each as [right, of].
    """
    tellings = [tell(story_seed("validation", seed, index), FRAMES, "validation") for index in range(stories)]
    lm.eval()
    return {
        name: _measure(lm, vocabulary, tellings, name == "image_tokens", torch.device(device))
        for name in ("direct", "image_tokens")
    }


def _measure(
    lm: StoryLM, vocabulary: Vocabulary, tellings: list[Telling], bottleneck: bool, device: torch.device
) -> dict[str, Any]:
    names = {vocabulary.encode(f" {who.name}")[0]: who.name for who in CAST}
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for begin in range(0, len(tellings), TOGETHER):
        chunk = tellings[begin : begin + TOGETHER]
        batch = collate([pack(_frames(telling), vocabulary) for telling in chunk], PAD).to(device)
        hidden = lm(batch, bottleneck=bottleneck)
        for row, telling in enumerate(chunk):
            answer = (batch.labels[row] >= 0) & (
                (batch.kinds[row] == Kind.IMAGE) | (batch.kinds[row] == Kind.ANSWER)
            )
            right = lm.logits(hidden[row][answer]).argmax(-1) == batch.labels[row][answer]
            labels = batch.labels[row][answer].tolist()
            frames = (-batch.blocks[row][answer] - 1).tolist()
            whole = dict.fromkeys(frames, True)
            for label, frame, ok in zip(labels, frames, right.tolist(), strict=True):
                whole[frame] &= ok
                if label in names:
                    for key in reference_keys(telling, frame, names[label]):
                        counts[key][0] += ok
                        counts[key][1] += 1
            counts["frames"][0] += sum(whole.values())
            counts["frames"][1] += len(whole)
    return {key: counts[key] for key in sorted(counts)}


def _frames(telling: Telling) -> list[PackedFrame]:
    return [
        PackedFrame(query(reference), text_history(reference), f" {plain}")
        for reference, plain in zip(telling.reference, telling.plain, strict=True)
    ]


def reference_keys(telling: Telling, frame: int, name: str) -> list[str]:
    """What one name counts for: `named`, or `resolved`, its kind of reference and its distance."""
    said = [set(text.lower().replace(",", " ").replace(".", " ").split()) for text in telling.reference]
    if name in said[frame]:
        return ["named"]
    who = member(name)
    own = {who.kind: "kind", who.pronoun: who.pronoun, OBJECT[who.pronoun]: who.pronoun}
    ways = {**own, "they": "they", "them": "they"}
    reference = next((way for word, way in ways.items() if word in said[frame]), "other")
    back = next((frame - past for past in range(frame - 1, -1, -1) if name in said[past]), 0)
    return ["resolved", f"by_reference.{reference}", f"by_distance.{min(back, 6)}"]
