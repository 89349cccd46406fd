"""Text and scenes in bulk: what tokenizers, the caption encoder, the language model and the autoencoder read.

Also knows the world's vocabulary, for warnings about words the model has never met. Draws no picture.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, permutations

from storyv_lite.train.toonworld.captions import original
from storyv_lite.train.toonworld.cast import CAST, member
from storyv_lite.train.toonworld.phrases import words
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, POSITIONS, PROPS, Actor, Scene
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import ToonStory, sample_story

PROP_SHARE = 0.45
EVENT_SHARE = 0.3  # of frames of two, in which something passes between them as it does in stories


def vocabulary() -> dict[str, list[str]]:
    """What the model can know: characters, places, actions, props, every lower-case word of any caption."""
    names = [who.name for who in CAST]
    kinds = [who.kind for who in CAST]
    pronouns = ["he", "she", "they", "him", "her", "them", "it", "there"]
    return {
        "characters": names,
        "places": list(PLACES),
        "actions": list(ACTIONS),
        "props": list(PROPS),
        "words": sorted({*names, *kinds, *pronouns, *PROPS, *words()}),
    }


def scene_for(seed: int, actors: int | None = None) -> Scene:
    """One frame by itself: one or two actors evenly unless `actors` says, all else uniform and independent.

    Props ~45 % of the time. Chance alone would hardly ever make the scenes in which two meet, go somewhere,
    greet or give: some of the frames of two are made so. The seed of the picture is `seed`, so a split's
    seeds give a split's pictures.
    """
    rng = random.Random(f"scene/{seed}")
    count = actors or rng.choice((1, 2))
    names = rng.sample([who.name for who in CAST], count)
    at = {1: (rng.choice(POSITIONS),), 2: ("left", "right"), 3: POSITIONS}[count]
    cast = tuple(
        Actor(name, rng.choice(ACTIONS), rng.choice(PROPS) if rng.random() < PROP_SHARE else None, position)
        for name, position in zip(names, at, strict=True)
    )
    if count == 2 and rng.random() < EVENT_SHARE:
        cast = _eventful(cast, rng)
    return Scene(rng.choice(PLACES), cast, seed)


def _eventful(cast: tuple[Actor, ...], rng: random.Random) -> tuple[Actor, ...]:
    """The same two, doing what a sentence about both of them tells."""
    action, prop, both = rng.choice(
        (
            ("standing", None, True),  # one joins the other, or they go
            ("running", None, True),
            ("waving", None, False),
            ("standing", rng.choice(PROPS), False),  # given by the other
        )
    )
    active = rng.choice(cast)
    return tuple(
        replace(actor, action=action, prop=prop)
        if both or actor is active
        else replace(actor, action="standing", prop=None)
        for actor in cast
    )


def scene_caption(scene: Scene) -> str:
    """One original caption of `scene`, the same for the same scene."""
    return original(scene, random.Random(f"caption/{scene.seed}"))


def lm_story_text(story: ToonStory) -> list[tuple[str, str]]:
    """(reference, original) of every frame."""
    return [(frame.reference, frame.original) for frame in story.frames]


def text_corpus(count: int, seed: int) -> Iterator[str]:
    """`count` captions of the training split for tokenizers: original, reference, paper style."""
    made = 0
    for index in range(count):
        rng = random.Random(f"corpus/{seed}/{index}")
        story = sample_story(story_seed("train", seed, index), rng.randint(2, 8))
        lines = [line for pair in lm_story_text(story) for line in pair] + paper_references(story)
        lines += [scene_caption(scene_for(rng.randrange(2**30))) for _ in range(4)]
        for line in lines:
            if made == count:
                return
            yield line
            made += 1


def paper_references(story: ToonStory) -> list[str]:
    """The story with the paper's pronouns (spec C.4) where a frame shows the characters of the frame before.

    Then "A and B" becomes "They" and a single name "She" or "He"; places stay spelled. Simpler than our own
    reference texts and ambiguous where those are not; kept for comparison with the published protocol.
    """
    lines = [story.frames[0].original]
    for before, frame in pairwise(story.frames):
        text = frame.original
        if sorted(before.names) == sorted(frame.names):
            spelled = [f"{name.capitalize()}(?: the {member(name).kind})?" for name in frame.names]
            pronoun = "they" if len(spelled) > 1 else member(frame.names[0]).pronoun
            pattern = "|".join(" and ".join(order) for order in permutations(spelled))
            text = re.sub(rf"\b(?:{pattern})\b", pronoun, text)
        lines.append(text[0].upper() + text[1:])
    return lines
