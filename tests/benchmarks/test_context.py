"""The comparison of reading through the cache with reading everything."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from storyv_lite.benchmarks.context import Walk, compare, main
from storyv_lite.benchmarks.measure import PICNIC, repeat_captions
from storyv_lite.bundle import Bundle
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.model import Model


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))


def walk(model: Model, captions: Sequence[str]) -> Walk:
    return Walk(model, captions)


def test_reading_through_the_cache_equals_reading_everything(model: Model) -> None:
    readings, largest = compare(walk(model, repeat_captions(PICNIC, 12)))
    assert [one.frames for one in readings] == [*range(2, 13)]
    assert max(one.difference for one in readings) < 1e-4 < largest


def test_the_states_compared_depend_on_what_was_read_before(model: Model) -> None:
    """Or else the comparison would prove nothing."""
    other = ("Bruno is sleeping in the snow.", *PICNIC[1:])
    first, second = (walk(model, captions).everything(3)[0] for captions in (PICNIC, other))
    assert np.abs(first - second).max() > 1e-3


def test_a_frame_reads_its_predecessor_and_its_query_alone(model: Model) -> None:
    story = walk(model, [PICNIC[0]] * 6)
    counts = [count for _, count in story.cached()]
    assert counts[1:] == [len(story.history[0]) + len(story.queries[0])] * 5
    readings, _ = compare(story)
    assert readings[-1].cached_tokens == sum(counts)
    assert readings[-1].full_tokens >= 2 * readings[-1].cached_tokens


def test_the_page_is_written_and_the_last_line_is_json(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "context.md"
    assert main(["--bundle", str(tiny_bundle), "--write", str(page)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert f"| {found['rows'][-1]['frames']} |" in page.read_text(encoding="utf-8")


def test_a_bundle_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", "nowhere"]) == 4
    assert "nowhere" in capsys.readouterr().err
