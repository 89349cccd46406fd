"""Figures of judged pictures, on labels made by hand whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest

from storyv_lite.benchmarks.scores import (
    Row,
    Shown,
    alikeness,
    breakdown,
    confusions,
    estimate,
    estimates,
    frame_group,
    frechet_distance,
    paired,
    resampling,
)
from storyv_lite.errors import ConfigError
from storyv_lite.train.toonworld.scene import Actor


def shown(*names: str, place: str = "beach", action: str = "standing", prop: str | None = None) -> Shown:
    return Shown(place, tuple(Actor(name, action, prop) for name in names))


def row(truth: Shown, seen: Shown, story: int = 0, frame: int = 1, nameless: bool = False) -> Row:
    return Row(story, frame, "He waves.", nameless, "he", 1, 1, False, truth, seen)


ROWS = [
    row(shown("milo"), shown("milo")),
    row(shown("milo", "luna"), shown("milo"), frame=2, nameless=True),
    row(shown("rex", prop="cake"), shown("rex", "kiki", place="hill"), story=1, frame=2),
    row(shown("otto"), shown("otto", place="", action="waving"), story=1, frame=3, nameless=True),
]


def test_every_figure_has_the_value_that_counting_by_hand_gives() -> None:
    found = {name: one.value for name, one in estimates(ROWS, 2).items()}
    assert found["char_acc"] == 50.0
    assert found["char_f1"] == round(100 * 2 * 4 / (5 + 5), 4)  # 4 seen rightly, 5 there, 5 seen
    assert found["bg_acc"] == 50.0
    assert found["bg_f1"] == round(100 * 2 * 2 / (4 + 3), 4)  # one place was not seen at all
    assert found["char_acc_references"] == 50.0
    assert found["action_acc"] == 60.0  # luna is missing, otto waves
    assert found["prop_acc"] == 60.0  # luna is missing, rex has no cake
    assert found["prop_acc_held"] == 0.0  # of rex alone, who should hold something
    assert found["position_acc"] is None and found["clip_t"] is None


def test_of_things_that_are_told_only_those_count_that_should_be_held() -> None:
    held = [row(shown("rex", prop="cake"), shown("rex", prop=seen)) for seen in ("cake", "ball", None)]
    free = [row(shown("milo"), shown("milo", prop=seen)) for seen in (None, None, "ball")]
    found = estimates([*held, *free], 1)
    assert found["prop_acc_held"].value == pytest.approx(100 / 3, abs=1e-3)
    assert found["prop_acc"].value == 50.0


def test_a_first_frame_is_no_reference() -> None:
    assert (
        estimates([row(shown("milo"), shown("milo"), nameless=True)], 1)["char_acc_references"].value is None
    )


def test_likenesses_are_plain_means() -> None:
    rows = [replace(one, text_similarity=0.25 * i, picture_similarity=1.0) for i, one in enumerate(ROWS)]
    found = estimates(rows, 2)
    assert (found["clip_t"].value, found["clip_i"].value) == (0.375, 1.0)


def test_the_bootstrap_resamples_stories_and_is_the_same_every_time() -> None:
    taken = resampling(2)
    assert np.array_equal(taken, resampling(2)) and set(taken.sum(1)) == {2.0}
    told = np.array([[2.0, 2.0], [0.0, 2.0]])  # one story all right, one all wrong
    assert estimate(told, taken) == estimate(told, resampling(2))
    assert (estimate(told, taken).low, estimate(told, taken).high) == (0.0, 100.0)
    sure = estimate(told[:1], resampling(1))
    assert (sure.low, sure.value, sure.high) == (100.0, 100.0, 100.0)


def test_many_stories_make_a_narrow_interval_around_the_value() -> None:
    told = np.stack([np.random.default_rng(0).random(400) < 0.8, np.ones(400)], 1).astype(np.float64)
    found = estimate(told, resampling(400))
    assert found.value is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high < found.low + 10


def test_a_pair_of_runs_over_the_same_stories_is_compared_story_by_story() -> None:
    assert paired(ROWS, ROWS, "char_acc").value == 0.0
    better = [*ROWS[:1], replace(ROWS[1], seen=ROWS[1].truth), *ROWS[2:]]
    assert paired(better, ROWS, "char_acc").value == 25.0
    with pytest.raises(ConfigError, match="other stories"):
        paired(ROWS, ROWS[:2], "char_acc")


def test_long_stories_compare_their_end_with_their_beginning() -> None:
    right, wrong = (row(shown("milo"), shown(name)) for name in ("milo", "rex"))
    rows = [replace(right if frame <= 15 else wrong, frame=frame) for frame in range(1, 21)]
    found = estimates(rows, 1)
    assert found["char_acc_2_to_5"].value == 100.0 and found["char_acc_last_10"].value == 50.0
    assert found["char_acc_lost"].value == 50.0
    assert "char_acc_lost" not in estimates(rows[:10], 1)


def test_failures_are_told_apart_by_what_makes_a_caption_hard() -> None:
    found = breakdown(ROWS)
    assert found["pronouns"] == {"he": {"n": 4, "char_acc": 50.0}}
    assert found["frame"]["2"] == {"n": 2, "char_acc": 0.0}
    assert [frame_group(frame).strip() for frame in (1, 3, 10, 41, 50)] == [
        "1",
        "2-5",
        "6-10",
        "41-50",
        "41-50",
    ]


def test_confusions_name_who_was_missing_and_who_was_there_instead() -> None:
    swapped = row(shown("milo", "luna"), shown("milo", "kiki"))
    assert confusions([*ROWS, swapped]) == {"luna > nobody": 1, "nobody > kiki": 1, "luna > kiki": 1}


def test_the_frechet_distance_of_shifted_features_is_the_square_of_the_shift() -> None:
    features = np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features, features + np.float32(2)) == pytest.approx(6 * 2**2, rel=1e-4)
    assert frechet_distance(features, 3 * features) == pytest.approx(6 * 2**2, rel=0.2)


def test_likeness_over_a_story_never_compares_within_a_frame() -> None:
    vectors = np.zeros((2, 2, 2), np.float32)
    vectors[:, 0], vectors[:, 1] = (1, 0), (0, 3)
    same, different = alikeness(vectors, [[0, 1], [0, 1]])
    assert same == (2.0, 2) and different == (0.0, 2)
    assert alikeness(vectors, [[0, 1], []]) == ((0.0, 0), (0.0, 0))
