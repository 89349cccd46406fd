"""How good a bundle's pictures are: it draws unseen stories of the cartoon world, the judge reads each frame.

Knows which stories are told and how, and who looks at the pictures; what the figures are is `scores`'
business. Every frame's true scene is drawn too (the real frame): the judge reads it as well, so that what it
gets wrong by itself stands beside what the model gets wrong. The judge chooses nothing that is shown.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.scores import (
    Estimate,
    Row,
    Shown,
    Tally,
    alikeness,
    breakdown,
    confusions,
    estimate,
    estimates,
    frechet_distance,
    resampling,
)
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.pipeline import Frame, StoryPipeline
from storyv_lite.runtime.tokenizer import TextTokenizer
from storyv_lite.story import Caption, Story
from storyv_lite.train.toonworld.captions import says_position
from storyv_lite.train.toonworld.cast import member
from storyv_lite.train.toonworld.references import is_nameless
from storyv_lite.train.toonworld.scene import Actor
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import ToonStory, reference_statistics, sample_story

if TYPE_CHECKING:
    from storyv_lite.modeling.judge import Judge, Verdict
    from storyv_lite.modeling.similarity import Similarity

CAPTIONS = ("references", "original", "mixed")
UNSEEN = ("test", "validation")
PRONOUNS = {"she": "she", "her": "she", "he": "he", "him": "he", "they": "they", "them": "they"}
OWN_JUDGE = Path(__file__).resolve().parents[1] / "checkpoints" / "toon" / "judge"


@dataclass(frozen=True)
class Likeness:
    """A checkpoint's encoders and the tokenizer that belongs to them."""

    encoders: "Similarity"
    tokenizer: TextTokenizer


@dataclass(frozen=True)
class Evaluation:
    """Everything judged of one run; `real` are the same frames as the world itself draws them."""

    stories: tuple[ToonStory, ...]
    rows: tuple[Row, ...]
    real: tuple[Row, ...]
    same: Tally  # per story: cosines of one character between frames
    different: Tally  # of two characters
    features: NDArray[np.float32]  # (N, C)
    real_features: NDArray[np.float32]


def find_judge(asked: Path | None, checkpoint: Path | None, here: Path) -> tuple[Path, str]:
    """The folder of the judge and why that one: the one asked for, else the checkpoint's, else the toon one.

    `asked` may be a checkpoint that holds a judge. Raises `BundleError`.
    """
    toon = here / "checkpoints" / "toon" / "judge"
    if asked is not None:
        places = {asked: "asked for", asked / "judge": "in the checkpoint asked for"}
    elif checkpoint is not None:
        places = {checkpoint / "judge": "the checkpoint's"}
    else:
        places = {toon: "of ./checkpoints/toon", OWN_JUDGE: "the one that ships with the repository"}
    for place, why in places.items():
        if (place / "config.json").is_file():
            return place, why
    raise BundleError(
        f"there is no judge in {' or '.join(f'`{place}`' for place in places)}",
        hint="--judge PATH, where PATH is a folder that `storyv-lite train --stage judge` wrote",
    )


def load_judge(folder: Path) -> "Judge":
    """Raises `BundleError` for a folder that holds something else."""
    from storyv_lite.modeling.checkpoints import load_component
    from storyv_lite.modeling.judge import Judge

    found = load_component(folder)
    if not isinstance(found, Judge):
        raise BundleError(
            f"`{folder}` holds `{type(found).__name__}`, a `Judge` is needed", hint="--judge PATH"
        )
    judge: Judge = found
    return judge


def load_likeness(checkpoint: Path) -> Likeness | None:
    """The encoders beside a judge; None where a judge stands alone."""
    from storyv_lite.modeling.similarity import Similarity

    file = checkpoint / "tokenizers" / "text_encoder" / "tokenizer.json"
    if not Similarity.is_in(checkpoint) or not file.is_file():
        return None
    encoders = Similarity(checkpoint)
    return Likeness(encoders, TextTokenizer(file, encoders.text_tokens))


@contextmanager
def exported(checkpoint: Path, told: Callable[[str], None]) -> Iterator[Path]:
    """The networks of a checkpoint as a bundle in full precision, for as long as it is drawn with."""
    from storyv_lite.export.assemble import export_checkpoint

    with TemporaryDirectory(prefix="storyv-lite-") as folder:
        yield export_checkpoint(checkpoint, Path(folder) / checkpoint.name, "fp32", progress=told)


def unseen_stories(count: int, frames: int, seed: int, split: str = "test") -> tuple[ToonStory, ...]:
    """Story i of a seed lies in the range of the split's seeds, whatever the seed. Raises `ConfigError`."""
    if split not in UNSEEN:
        raise ConfigError(f"there is no split `{split}` of unseen stories", f"they are {', '.join(UNSEEN)}")
    return tuple(sample_story(story_seed(split, seed, i), frames, split) for i in range(count))


def captions_of(story: ToonStory, way: str) -> tuple[str, ...]:
    """The captions as the model gets them; "mixed" tosses a coin for every frame after the first."""
    rng = random.Random(f"mixed/{story.seed}")
    spelled = [way == "original" or (way == "mixed" and rng.random() < 0.5) for _ in story.frames]
    return tuple(f.original if plain else f.reference for f, plain in zip(story.frames, spelled, strict=True))


def told_in(lines: Sequence[str]) -> Story:
    return Story(tuple(Caption(line) for line in lines))


def check(
    pipeline: StoryPipeline,
    stories: Sequence[ToonStory],
    captions: str = "references",
    context: str = "interleaved",
    context_size: str | int | None = None,
    kv_cache: str | None = None,
    spell_out: bool = False,
) -> None:
    """Raise whatever keeps `evaluate` from drawing one of these stories; nothing is loaded for it."""
    if captions not in CAPTIONS:
        raise ConfigError(f"there are no captions `{captions}`", hint=f"captions are {', '.join(CAPTIONS)}")
    for story in stories:
        asked = told_in(captions_of(story, captions))
        pipeline.draw(
            asked,
            story.seed,
            context=context,
            context_size=context_size,
            kv_cache=kv_cache,
            spell_out=spell_out,
        )


def evaluate(
    pipeline: StoryPipeline,
    judge: "Judge",
    likeness: Likeness | None,
    stories: Sequence[ToonStory],
    captions: str = "references",
    context: str = "interleaved",
    told: Callable[[str], None] = lambda text: None,
    context_size: str | int | None = None,
    kv_cache: str | None = None,
    spell_out: bool = False,
) -> Evaluation:
    """Draw and judge every story. Raises `ConfigError` for unknown options, `StoryError` and `BundleError`.

    A story's noise comes from its own seed, so runs over the same stories can be compared in pairs.
    """
    from storyv_lite.train.toonworld import draw  # which takes the drawing library

    check(pipeline, stories, captions, context, context_size, kv_cache, spell_out)
    cast = list(judge.config.cast)
    size = pipeline.bundle.model.dimensions.image_size
    rows: list[Row] = []
    real_rows: list[Row] = []
    features: list[NDArray[np.float32]] = []
    real_features: list[NDArray[np.float32]] = []
    same, different = np.zeros((len(stories), 2)), np.zeros((len(stories), 2))
    for index, story in enumerate(stories):
        lines = captions_of(story, captions)
        drawn: list[Frame] = []
        frames = pipeline.draw(
            told_in(lines),
            story.seed,
            context=context,
            context_size=context_size,
            kv_cache=kv_cache,
            spell_out=spell_out,
        )
        for frame in frames:
            drawn.append(frame)
            told(f"story {index + 1} of {len(stories)}, frame {len(drawn)} of {len(lines)}")
        pictures = np.stack([frame.image for frame in drawn])
        real = np.stack([draw.render(frame.scene, size).image for frame in story.frames])
        seen, seen_real = judge.read(pictures), judge.read(real)
        dropped = [frame.index - len(frame.context) if frame.reduced else 0 for frame in drawn]
        rows += judged(index, story, lines, judge, seen, likenesses(likeness, story, pictures, real), dropped)
        real_rows += judged(index, story, lines, judge, seen_real, likenesses(likeness, story, real, real))
        features.append(seen.features)
        real_features.append(seen_real.features)
        shown = [[cast.index(name) for name in frame.names] for frame in story.frames]
        same[index], different[index] = alikeness(seen.characters, shown)
    return Evaluation(
        tuple(stories),
        tuple(rows),
        tuple(real_rows),
        same,
        different,
        np.concatenate(features),
        np.concatenate(real_features),
    )


def judged(
    index: int,
    story: ToonStory,
    lines: Sequence[str],
    judge: "Judge",
    verdict: "Verdict",
    likes: Sequence[tuple[float | None, float | None]],
    dropped: Sequence[int] | None = None,
) -> list[Row]:
    """One row per frame of a story: its truth, what makes its caption hard, what the judge saw."""
    rows, met = [], set[str]()
    for number, (frame, line) in enumerate(zip(story.frames, lines, strict=True)):
        said = sorted({PRONOUNS[word] for word in re.findall("[a-z]+", line.lower()) if word in PRONOUNS})
        nameless = is_nameless(line)
        rows.append(
            Row(
                index,
                number + 1,
                line,
                nameless,
                "+".join([*([] if nameless else ["name"]), *said]) or "neither",
                frame.antecedent_distance if line == frame.reference else 0,
                sum("they" in said or member(name).pronoun in said for name in met),
                says_position(line),
                Shown.of(frame.scene),
                shown_in(judge, verdict, number),
                *likes[number],
                dropped=dropped[number] if dropped else 0,
            )
        )
        met.update(frame.names)
    return rows


def shown_in(judge: "Judge", verdict: "Verdict", index: int) -> Shown:
    """What the judge saw in one picture, in the words of the world."""
    words = judge.config
    props = [*words.props, None]
    actors = tuple(
        Actor(
            words.cast[who],
            words.actions[verdict.actions[index, who]],
            props[verdict.props[index, who]],
            words.positions[verdict.positions[index, who]],
        )
        for who in np.flatnonzero(verdict.present[index])
    )
    place = np.flatnonzero(verdict.places[index])
    return Shown(words.places[place[0]] if len(place) else "", actors)


def likenesses(
    likeness: Likeness | None, story: ToonStory, pictures: Pixels, real: Pixels
) -> list[tuple[float | None, float | None]]:
    """Per frame: cosines of the picture with the caption that spells out every name, and the real frame."""
    if likeness is None:
        return [(None, None)] * len(pictures)
    ids = np.concatenate([likeness.tokenizer.encode(frame.original).ids for frame in story.frames])
    seen, true = likeness.encoders.pictures(pictures), likeness.encoders.pictures(real)
    texts = (seen * likeness.encoders.texts(ids)).sum(1)
    return [(float(text), float(one)) for text, one in zip(texts, (seen * true).sum(1), strict=True)]


def summary(found: Evaluation) -> tuple[dict[str, Estimate], dict[str, Estimate], dict[str, Any]]:
    """The figures of the drawn frames, those of the real ones, and what is counted beside them."""
    count = len(found.stories)
    taken = resampling(count)
    drawn, real = estimates(found.rows, count), estimates(found.real, count)
    drawn["consistency"] = estimate(found.same, taken, 1.0, minus=found.different)
    # No interval: a resampling repeats frames, and repeated frames look further from real ones than they are.
    distance = frechet_distance(found.features, found.real_features) if len(found.rows) > 1 else None
    drawn["frechet_distance"] = Estimate(None if distance is None else round(distance, 4))
    counted = {
        "n": len(found.rows),
        "n_references": sum(row.nameless and row.frame > 1 for row in found.rows),
        "frames_dropped": sum(row.dropped for row in found.rows),
        "references": reference_statistics(found.stories),
        "breakdown": breakdown(found.rows),
        "confusions": confusions(found.rows),
    }
    return drawn, real, counted


def as_json(drawn: dict[str, Estimate], real: dict[str, Estimate], counted: dict[str, Any]) -> dict[str, Any]:
    """Figures as plain numbers, their intervals and the real frames' beside them."""
    return {
        **{name: one.value for name, one in drawn.items()},
        **{name: value for name, value in counted.items()},
        "intervals": {name: [one.low, one.high] for name, one in drawn.items() if one.low is not None},
        "real": {name: one.value for name, one in real.items()},
    }


def rows_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]
