"""The official procedure of reading, counted beside ours."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from storyv_lite.benchmarks import official
from storyv_lite.benchmarks.measure import PICNIC, repeat_captions
from storyv_lite.benchmarks.official import Cost, Counter, Counts, main, measure, table
from storyv_lite.bundle import Bundle
from storyv_lite.errors import ConfigError
from storyv_lite.prompt import history, query
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.pipeline import StoryPipeline

FRAMES = 12  # more than the tiny bundle reads at once


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def pictures(count: int) -> list[Pixels]:
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(count)]


def costs(bundle: Bundle, captions: Sequence[str]) -> dict[str, Cost]:
    found = measure(bundle, captions, pictures(len(captions)), rounds=1, threads=1)
    return {cost.procedure: cost for cost in found}


def test_the_official_procedure_reads_everything_twice_and_looks_at_every_picture_again(
    bundle: Bundle,
) -> None:
    model = StoryPipeline(bundle, open_backend("cpu", threads=1)).model
    slot = np.zeros((model.dims.visual_tokens, model.dims.hidden_size), np.float32)
    told = [len(model.piece(i, history(text), slot)) for i, text in enumerate(PICNIC)]
    asked = [len(model.piece(i, query(text))) for i, text in enumerate(PICNIC)]
    prompts = [1 + sum(told[:i]) + asked[i] for i in range(len(PICNIC))]
    found = costs(bundle, PICNIC)["official"].counts
    assert found.tokens == sum(2 * length - model.dims.image_tokens for length in prompts)
    assert found.reads == 2 * len(PICNIC)
    assert found.pictures == sum(range(len(PICNIC)))


def test_ours_reads_a_frame_and_its_predecessor_and_looks_at_a_picture_once(bundle: Bundle) -> None:
    found = costs(bundle, [PICNIC[0]] * 6)
    counts = found["whole"].counts
    assert (counts.reads, counts.pictures) == (6, 5)
    assert found["default"].counts == counts, "six frames fit the context"
    assert found["official"].counts.tokens > 3 * counts.tokens


def test_a_bundle_whose_context_is_full_reads_more_than_a_whole_story_would_take(bundle: Bundle) -> None:
    found = costs(bundle, repeat_captions(PICNIC, FRAMES))
    assert bundle.model.context.frames < FRAMES
    assert found["default"].counts.tokens > found["whole"].counts.tokens
    assert found["default"].counts.pictures == found["whole"].counts.pictures == FRAMES - 1


def test_both_procedures_come_to_the_same_states(bundle: Bundle) -> None:
    """Or else their costs could not be compared."""
    captions, seen = repeat_captions(PICNIC, FRAMES), pictures(FRAMES)
    counter, states = Counter(open_backend("cpu", threads=1)), []
    pipeline = StoryPipeline(official.unlimited(bundle), counter.backend)
    for way in (
        partial(official.read_officially, pipeline.model),
        partial(official.read_through_the_cache, pipeline),
    ):
        way(captions, seen)
        assert counter.states is not None
        states.append(counter.states[0, -bundle.model.dimensions.image_tokens :])
    assert np.abs(states[0] - states[1]).max() < 1e-4 < np.abs(states[0]).max()


def test_a_frame_that_is_drawn_from_portraits_is_not_read_in_either_way(bundle: Bundle) -> None:
    portraits = replace(bundle, model=replace(bundle.model, first_frame="char_ldm"))
    found, read = costs(portraits, PICNIC), costs(bundle, PICNIC)
    assert found["official"].counts.reads == read["official"].counts.reads - 2
    assert found["whole"].counts.reads == read["whole"].counts.reads - 1


def test_the_table_gives_the_official_figure_over_ours() -> None:
    rows = table(
        [
            Cost("official", 10, Counts(1000, 18, 45), (2.0, 4.0, 3.0)),
            Cost("whole", 10, Counts(100, 9, 9), (0.5,)),
        ]
    )
    assert rows[2] == ["10", "ours, whole story read", "100", "9", "0.5", "10.0x", "6.0x"]


def test_a_story_longer_than_the_model_has_positions_for_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="positions for 1024"):
        costs(bundle, repeat_captions(PICNIC, 60))


def test_a_bundle_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", "nowhere"]) == 4
    assert "nowhere" in capsys.readouterr().err


def test_a_story_without_a_history_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--frames", "1"]) == 2
    assert "--frames" in capsys.readouterr().err
