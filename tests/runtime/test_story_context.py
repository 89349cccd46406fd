"""Which finished frames a long story is read behind."""

from collections.abc import Sequence

import numpy as np
import pytest

from storyv_lite.manifest import Context
from storyv_lite.runtime.context import RECENT, Finished, grow, lasting, reduce


def told(*names: str, tokens: int = 10) -> list[Finished]:
    """Frames that name characters by their letters, and a place by an `@`; a blank names nobody."""
    return [Finished(tokens, frozenset(letters.strip("@ ")), "@" in letters) for letters in names]


def contexts(story: Sequence[Finished], query: int, limits: Context) -> list[tuple[int, ...]]:
    """What every frame of a story is read behind."""
    kept: tuple[int, ...] = ()
    found = []
    for count in range(len(story) + 1):
        kept = grow(kept, story[:count], query, limits)
        found.append(kept)
    return found


def test_all_frames_stay_while_they_fit() -> None:
    story = told("a", "b", "", "", "", "")
    assert contexts(story, 20, Context(tokens=81, frames=7))[-1] == (0, 1, 2, 3, 4, 5)


def test_a_full_context_is_reduced_to_introductions_and_the_latest_frames() -> None:
    story = told("a", "", "b", *"a" * 20)
    assert reduce(story, 20, Context(tokens=1000, frames=16)) == (0, 2, 17, 18, 19, 20, 21, 22)


def test_little_room_is_shared_by_the_latest_frames_and_the_introductions_of_those_named_last() -> None:
    story = told("a", "b", "c", "", "b", *" " * 10)
    assert reduce(story, 5, Context(tokens=1000, frames=3)) == (14,)
    assert reduce(story, 5, Context(tokens=1000, frames=4)) == (1, 14)
    assert reduce(story, 5, Context(tokens=1000, frames=7)) == (1, 2, 13, 14)
    assert reduce(story, 5, Context(tokens=1000, frames=12)) == (0, 1, 2, 10, 11, 12, 13, 14)


def test_a_reduced_context_keeps_the_frame_that_named_a_place_last() -> None:
    story = told("a@", "@", "b", "@", *"a" * 20)
    assert reduce(story, 20, Context(tokens=1000, frames=16)) == (0, 2, 3, 18, 19, 20, 21, 22, 23)
    assert reduce(story, 20, Context(tokens=1000, frames=4)) == (3, 23)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_is_never_a_frame_that_was_left_for_good(seed: int) -> None:
    rng = np.random.default_rng(seed)
    story = told(*("abcdefgh"[rng.integers(8)] + "@ "[rng.integers(2)] for _ in range(300)))
    limits, there = Context(tokens=200, frames=14), set[int]()
    kept: tuple[int, ...] = ()
    for count in range(len(story) + 1):
        there |= {count - 1} if count else set()
        before, kept = kept, grow(kept, story[:count], 20, limits)
        assert there.issuperset(kept)
        if kept[: len(before)] != before:
            there = {*kept, *lasting(story[:count])}
            assert len(there) < 30


@pytest.mark.parametrize(("tokens", "kept"), [(31, (14,)), (30, ())])
def test_the_newest_frame_stays_as_long_as_it_fits_at_all(tokens: int, kept: tuple[int, ...]) -> None:
    assert reduce(told(*" " * 15), 20, Context(tokens, 99)) == kept


def test_one_reduction_serves_many_frames_whatever_the_length_of_the_story() -> None:
    rng = np.random.default_rng(0)
    story = told(*("abcdefgh"[rng.integers(8)] if rng.random() < 0.3 else "" for _ in range(1000)))
    found = contexts(story, 20, Context(tokens=4096, frames=24))
    built = [i for i in range(1, 1001) if found[i][:-1] != found[i - 1]]
    assert built[0] == 24 and len(built) < 1000 / 9
    assert sum(len(found[i]) for i in built) < 2 * 1000  # read anew: less than two a frame
    for i in built:
        assert set(range(i - RECENT, i)) <= set(found[i])


@pytest.mark.parametrize("seed", range(20))
def test_what_is_kept_always_fits_and_keeps_its_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=rng.integers(1, 40)).tolist()
    story = [Finished(length, frozenset("abcdef"[: rng.integers(3)])) for length in lengths]
    limits = Context(int(rng.integers(60, 900)), int(rng.integers(1, 30)))
    for kept in contexts(story, 50, limits):
        assert 1 + sum(story[i].tokens for i in kept) + 50 <= limits.tokens
        assert len(kept) < limits.frames
        assert list(kept) == sorted(set(kept))
