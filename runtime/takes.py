"""The order in which frames were drawn, as data: what redrawing, going on and damage do to it.

Knows takes, not files and not pictures. Every take was drawn behind the frames before it, each as its latest
take up to then shows it. So the list of takes determines every picture: drawing it from nothing, in order,
gives the same bytes.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate

from storyv_lite.story import Caption, Story, Take


def captions_at(takes: Sequence[Take], end: int) -> tuple[Caption, ...]:
    """The story as it stands after the first `end` takes; frames without a take yet as they will be first."""
    captions: dict[int, Caption] = {}
    for place, take in enumerate(takes):
        if place < end or take.frame not in captions:
            captions[take.frame] = take.caption
    return tuple(captions[frame] for frame in range(len(captions)))


def run(takes: Sequence[Take], begin: int) -> int:
    """How many takes from `begin` on are of consecutive frames: they are drawn in one go."""
    end = begin + 1
    while end < len(takes) and takes[end].frame == takes[end - 1].frame + 1:
        end += 1
    return end - begin


def live(takes: Sequence[Take]) -> list[int]:
    """Places of the takes that matter: those that are shown, and those that one of them was drawn behind."""
    kept: list[int] = []  # from the end
    next_take: dict[int, int] = {}  # frame: how many were kept when its next take was met
    for place in reversed(range(len(takes))):
        frame = takes[place].frame
        behind = next_take.get(frame)
        if behind is None or any(takes[other].frame > frame for other in kept[behind:]):
            kept.append(place)
        next_take[frame] = len(kept)
    return kept[::-1]


def redrawn(takes: Sequence[Take], changes: Mapping[int, Caption], follow: bool) -> list[Take]:
    """`takes` and those that draw frames again: {frame: what it shall show}.

    With `follow` all frames behind the first of them are drawn again too, as they are.
    """
    now = captions_at(takes, len(takes))
    again = range(min(changes), len(now)) if follow else sorted(changes)
    return [*takes, *(Take(frame, changes.get(frame, now[frame])) for frame in again)]


def extended(takes: Sequence[Take], captions: Sequence[Caption]) -> list[Take]:
    """`takes` and one for each new caption behind the last frame."""
    count = len({take.frame for take in takes})
    return [*takes, *(Take(count + place, caption) for place, caption in enumerate(captions))]


def overdrawn(pending: Sequence[Take]) -> set[int]:
    """Frames that are drawn before anything is drawn behind them: what their files hold does not matter."""
    highest = accumulate((take.frame for take in pending), max)
    return {take.frame for take, reached in zip(pending, highest, strict=True) if take.frame == reached}


def intact(takes: Sequence[Take], bad: Collection[int]) -> int:
    """How many of the first takes stand when the frames `bad` are lost: the rest is drawn again, in order.

    A frame with several takes ends them too: its earlier pictures are no longer there.
    """
    if not bad:
        return len(takes)
    several = {frame for frame, count in Counter(take.frame for take in takes).items() if count > 1}
    return next(place for place, take in enumerate(takes) if take.frame in several or take.frame in bad)


def tell(title: str, takes: Sequence[Take]) -> Story:
    """The story that `takes` draw; they are part of it only where they are not one per frame, in order."""
    captions = captions_at(takes, len(takes))
    plain = len(takes) == len(captions)
    return Story(captions, title, () if plain else tuple(takes))
