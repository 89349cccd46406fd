"""The order of drawing: what is live, what damage ends, and that replaying it gives what is shown."""

import random

import pytest

from storyv_lite.runtime.takes import captions_at, extended, intact, live, overdrawn, redrawn, run, tell
from storyv_lite.story import Caption, Take


def takes(*frames: int) -> list[Take]:
    return [Take(frame, Caption(f"{frame} drawn {place}")) for place, frame in enumerate(frames)]


def pictures(order: list[Take]) -> dict[int, str]:
    """What drawing in this order shows: every picture names its caption and all pictures before it."""
    shown: dict[int, str] = {}
    for take in order:
        before = ", ".join(shown[frame] for frame in range(take.frame))
        shown[take.frame] = f"{take.caption.text} ({before})"
    return shown


def test_a_take_that_nobody_was_drawn_behind_is_left_out() -> None:
    assert live(takes(0, 1, 2, 2)) == [0, 1, 3]
    assert live(takes(0, 1, 2, 1, 2)) == [0, 3, 4]
    assert live(takes(0, 0, 0)) == [2]


def test_a_replaced_take_stays_while_a_later_frame_was_drawn_behind_it() -> None:
    assert live(takes(0, 1, 2, 1)) == [0, 1, 2, 3]
    assert live(takes(0, 1, 2, 1, 1)) == [0, 1, 2, 4]


def test_leaving_out_dead_takes_changes_no_picture() -> None:
    chance = random.Random(0)
    for _ in range(300):
        order = takes(0)
        while len(order) < chance.randint(1, 14):
            count = 1 + max(take.frame for take in order)
            order.append(Take(chance.randint(0, count), Caption(f"take {len(order)}")))
        kept = [order[place] for place in live(order)]
        assert pictures(kept) == pictures(order)
        firsts = [
            take.frame for place, take in enumerate(kept) if take.frame not in {t.frame for t in kept[:place]}
        ]
        assert firsts == sorted(firsts), "frames appear in order, so drawing can begin again anywhere"
        bad = {chance.randrange(count) for count in [1 + max(take.frame for take in kept)]}
        stands = kept[: intact(kept, bad)]
        assert not bad & {take.frame for take in stands}
        assert len({take.frame for take in stands}) == len(stands), "what stands is on the disk as it was"


def test_redrawing_is_one_take_and_with_follow_one_for_each_frame_after_it() -> None:
    order = takes(0, 1, 2)
    new = Caption("other", 7)
    assert redrawn(order, {1: new}, follow=False) == [*order, Take(1, new)]
    assert redrawn(order, {1: new}, follow=True) == [*order, Take(1, new), order[2]]


@pytest.mark.parametrize(
    ("pending", "frames"), [((2, 5), {2, 5}), ((5, 2), {5}), ((1, 2, 1), {1, 2}), ((), set())]
)
def test_a_file_does_not_matter_when_its_frame_is_drawn_before_it_is_read(
    pending: tuple[int, ...], frames: set[int]
) -> None:
    assert overdrawn(takes(*pending)) == frames


def test_a_longer_story_goes_on_behind_its_last_frame() -> None:
    assert [take.frame for take in extended(takes(0, 1, 0), [Caption("a"), Caption("b")])] == [0, 1, 0, 2, 3]


@pytest.mark.parametrize(("begin", "count"), [(0, 3), (1, 2), (3, 2), (5, 1)])
def test_consecutive_frames_are_drawn_in_one_go(begin: int, count: int) -> None:
    assert run(takes(0, 1, 2, 1, 2, 0), begin) == count


def test_captions_are_those_of_the_time() -> None:
    order = takes(0, 1, 0)
    assert [one.text for one in captions_at(order, 2)] == ["0 drawn 0", "1 drawn 1"]
    assert [one.text for one in captions_at(order, 3)] == ["0 drawn 2", "1 drawn 1"]
    assert len(captions_at(order, 0)) == 2


def test_a_story_told_once_in_order_needs_no_takes() -> None:
    assert tell("", takes(0, 1)).takes == ()
    assert tell("", takes(0, 1, 0)).takes == tuple(takes(0, 1, 0))
