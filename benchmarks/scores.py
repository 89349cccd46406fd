"""Scores of judged pictures: from what every frame should show and what the judge saw in it, to figures.

Pure: knows labels, stories and the bootstrap; draws nothing, judges nothing. Every figure is a ratio of two
sums over stories (or a difference of two such ratios), so that one resampling of stories gives the intervals
of all of them, and two runs over the same stories can be compared in pairs.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.errors import ConfigError
from storyv_lite.train.toonworld.scene import Actor, Scene

RESAMPLED = 2000
CONFIDENCE = 95
BINS = (1, 5, 10, 20, 30, 40, 50, 100, 1000)  # last frames of the groups that long stories are told apart by

Tally = NDArray[np.float64]  # (stories, 2): numerator and denominator


@dataclass(frozen=True)
class Shown:
    """What a picture shows; `place` is empty where none is likelier than not."""

    place: str
    actors: tuple[Actor, ...]

    @classmethod
    def of(cls, scene: Scene) -> "Shown":
        return cls(scene.place, scene.actors)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(actor.name for actor in self.actors)


@dataclass(frozen=True)
class Row:
    """One judged frame."""

    story: int  # from 0
    frame: int  # from 1
    caption: str
    nameless: bool  # the caption holds no name and no kind word
    pronouns: str  # "name", "she", "they", "name+he", ...
    distance: int  # frames back to the furthest antecedent, 0 without a pronoun for a character
    rivals: int  # characters of those pronouns met in the story so far
    placed: bool  # the caption tells who stands left, in the middle or right
    truth: Shown
    seen: Shown
    text_similarity: float | None = None  # to the caption with every name spelled out
    picture_similarity: float | None = None  # to the real frame
    dropped: int = 0  # finished frames that the context had no room for

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """A row as `asdict` and JSON leave it."""
        truth, seen = (
            Shown(shown["place"], tuple(Actor(**actor) for actor in shown["actors"]))
            for shown in (values["truth"], values["seen"])
        )
        return cls(**{**values, "truth": truth, "seen": seen})


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 95 % interval by bootstrap over stories; None where there is nothing."""

    value: float | None
    low: float | None = None
    high: float | None = None


def _exact(row: Row) -> tuple[float, float]:
    return float(row.seen.names == row.truth.names), 1.0


def _characters_f1(row: Row) -> tuple[float, float]:
    return 2.0 * len(row.seen.names & row.truth.names), float(len(row.seen.names) + len(row.truth.names))


def _place(row: Row) -> tuple[float, float]:
    return float(row.seen.place == row.truth.place), 1.0


def _place_f1(row: Row) -> tuple[float, float]:
    return 2.0 * (row.seen.place == row.truth.place), 1.0 + bool(row.seen.place)


def _references(row: Row) -> tuple[float, float]:
    return _exact(row) if row.nameless and row.frame > 1 else (0.0, 0.0)


def _detail(name: str) -> Callable[[Row], tuple[float, float]]:
    """The share of the characters that should be there of whom this is right; who is missing is wrong."""

    def count(row: Row) -> tuple[float, float]:
        if name == "position" and not row.placed:
            return 0.0, 0.0
        seen = {actor.name: getattr(actor, name) for actor in row.seen.actors}
        right = [a.name in seen and seen[a.name] == getattr(a, name) for a in row.truth.actors]
        return float(sum(right)), float(len(right))

    return count


def _held(row: Row) -> tuple[float, float]:
    """As `_detail`, of those characters alone that should hold something: most hold nothing."""
    seen = {actor.name: actor.prop for actor in row.seen.actors}
    holding = [actor for actor in row.truth.actors if actor.prop]
    return float(sum(seen.get(a.name) == a.prop for a in holding)), float(len(holding))


def _mean(name: str) -> Callable[[Row], tuple[float, float]]:
    def count(row: Row) -> tuple[float, float]:
        value = getattr(row, name)
        return (0.0, 0.0) if value is None else (float(value), 1.0)

    return count


PERCENT: dict[str, Callable[[Row], tuple[float, float]]] = {
    "char_acc": _exact,
    "char_f1": _characters_f1,
    "bg_acc": _place,
    "bg_f1": _place_f1,
    "char_acc_references": _references,
    "action_acc": _detail("action"),
    "prop_acc": _detail("prop"),
    "prop_acc_held": _held,
    "position_acc": _detail("position"),
}
COSINES: dict[str, Callable[[Row], tuple[float, float]]] = {
    "clip_t": _mean("text_similarity"),
    "clip_i": _mean("picture_similarity"),
}


def tally(rows: Iterable[Row], stories: int, count: Callable[[Row], tuple[float, float]]) -> Tally:
    """Numerator and denominator of one figure per story."""
    total = np.zeros((stories, 2))
    for row in rows:
        total[row.story] += count(row)
    return total


def resampling(stories: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each story is taken in each resampling of all of them, (RESAMPLED, stories)."""
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(stories, np.full(stories, 1 / stories), size=RESAMPLED)
    return taken.astype(np.float64)


def estimate(
    told: Tally, taken: NDArray[np.float64], scale: float = 100.0, minus: Tally | None = None
) -> Estimate:
    """`scale` times the ratio of the sums, or the difference of two ratios over the same stories."""
    if not told[:, 1].sum() or (minus is not None and not minus[:, 1].sum()):
        return Estimate(None)
    once = np.ones((1, len(told)))
    values = [_ratio(told, w) - (0.0 if minus is None else _ratio(minus, w)) for w in (once, taken)]
    spread = values[1][np.isfinite(values[1])]  # a resampling may hold no frame that counts
    low, high = np.percentile(spread, [50 - CONFIDENCE / 2, 50 + CONFIDENCE / 2])
    return Estimate(*(round(scale * float(value), 4) for value in (values[0][0], low, high)))


def estimates(rows: Sequence[Row], stories: int) -> dict[str, Estimate]:
    """Every figure of single frames; of stories of 20 frames and more also the end against the beginning."""
    taken = resampling(stories)
    found = {name: estimate(tally(rows, stories, count), taken) for name, count in PERCENT.items()}
    found |= {name: estimate(tally(rows, stories, count), taken, 1.0) for name, count in COSINES.items()}
    frames = max(row.frame for row in rows)
    if frames >= 20:
        early = tally((row for row in rows if 2 <= row.frame <= 5), stories, _exact)
        late = tally((row for row in rows if row.frame > frames - 10), stories, _exact)
        found["char_acc_2_to_5"] = estimate(early, taken)
        found["char_acc_last_10"] = estimate(late, taken)
        found["char_acc_lost"] = estimate(early, taken, minus=late)
    return found


def paired(first: Sequence[Row], second: Sequence[Row], name: str) -> Estimate:
    """How much higher a figure is in the first of two runs over the same stories and captions.

    Raises `ConfigError` when they are not the same.
    """
    keys = [[(row.story, row.frame, row.caption, row.truth) for row in rows] for rows in (first, second)]
    if keys[0] != keys[1]:
        raise ConfigError("the two runs told other stories", hint="evaluate both with the same options")
    count, scale = (PERCENT[name], 100.0) if name in PERCENT else (COSINES[name], 1.0)
    stories = 1 + max(row.story for row in first)
    tallies = [tally(rows, stories, count) for rows in (first, second)]
    return estimate(tallies[0], resampling(stories), scale, minus=tallies[1])


def breakdown(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, float]]]:
    """Character accuracy in percent, and frames counted, by what makes a caption hard and by frame."""
    frames = max(row.frame for row in rows)
    referring = [row for row in rows if row.distance]
    return {
        "pronouns": _grouped(rows, lambda row: row.pronouns),
        "distance": _grouped(referring, lambda row: f"{row.distance:2d}"),
        "rivals": _grouped(referring, lambda row: f"{row.rivals:2d}"),
        "frame": _grouped(rows, lambda row: f"{row.frame:2d}" if frames <= 10 else frame_group(row.frame)),
    }


def frame_group(frame: int) -> str:
    """1, 2-5, 6-10, 11-20, ...: where in a long story a frame lies."""
    first = 1
    for last in BINS:
        if frame <= last:
            return f"{first:2d}" if first == last else f"{first:2d}-{last}"
        first = last + 1
    return f"{first}-"


def confusions(rows: Iterable[Row]) -> dict[str, int]:
    """How often a character was missing, and who was seen instead ("nobody", where nobody else was)."""
    counted: Counter[str] = Counter()
    for row in rows:
        missing, more = sorted(row.truth.names - row.seen.names), sorted(row.seen.names - row.truth.names)
        counted.update(f"{who} > {' + '.join(more) or 'nobody'}" for who in missing)
        if not missing:
            counted.update(f"nobody > {who}" for who in more)
    return dict(counted.most_common())


def frechet_distance(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Distance of two normal distributions fitted to features (N, C) and (M, C), as in the FID."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    mean = a.mean(0) - b.mean(0)
    first_cov, second_cov = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = _root(first_cov)
    cross = np.linalg.eigvalsh(root @ second_cov @ root).clip(min=0)
    trace = np.trace(first_cov) + np.trace(second_cov) - 2 * np.sqrt(cross).sum()
    return max(0.0, float(mean @ mean + trace))


def alikeness(
    vectors: NDArray[np.float32], present: Sequence[Sequence[int]]
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Sum and count of cosines over the frames of one story: of one character, and of two different ones.

    `vectors` (F, K, C) are what was seen of each character, `present[f]` who should be there. A pair never
    comes from one frame.
    """
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
    seen = [(frame, who) for frame, shown in enumerate(present) for who in shown]
    sums, counts = [0.0, 0.0], [0, 0]
    for index, (frame, who) in enumerate(seen):
        for other_frame, other in seen[index + 1 :]:
            if frame != other_frame:
                kind = int(who != other)
                sums[kind] += float(units[frame, who] @ units[other_frame, other])
                counts[kind] += 1
    return (sums[0], counts[0]), (sums[1], counts[1])


def _ratio(told: Tally, taken: NDArray[np.float64]) -> NDArray[np.float64]:
    above, below = taken @ told[:, 0], taken @ told[:, 1]
    found: NDArray[np.float64] = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    return found


def _grouped(rows: Iterable[Row], of: Callable[[Row], str]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        groups[of(row)].append(_exact(row)[0])
    return {
        name.strip(): {"n": len(groups[name]), "char_acc": round(100 * float(np.mean(groups[name])), 2)}
        for name in sorted(groups)
    }


def _root(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    root: NDArray[np.float64] = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
