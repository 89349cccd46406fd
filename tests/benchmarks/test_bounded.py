"""The long story in a bounded context: equal captions, cycles, checks and the plot."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from storyv_lite.benchmarks.bounded import Cost, checks, cycles, equal_story, measure, plot
from storyv_lite.benchmarks.kv_widths import BOUND, compare
from storyv_lite.benchmarks.plot import Line, Panel, svg
from storyv_lite.errors import ConfigError
from storyv_lite.prompt import history, query
from storyv_lite.runtime.pipeline import StoryPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> StoryPipeline:
    return StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1)


def costs(*tokens: int, seconds: float = 1.0, resident: int = 100) -> list[Cost]:
    """Frames; one that reads 50 tokens or more is a rebuild."""
    return [Cost(count, count, seconds, count >= 50, resident) for count in tokens]


def test_all_captions_of_the_story_are_equally_long_and_everybody_comes_in_early(
    pipeline: StoryPipeline,
) -> None:
    model, story = pipeline.model, equal_story(pipeline.model, 40, 0)
    texts = [caption.text for caption in story.captions]
    assert len(texts) == 40 and len(set(texts)) > 5
    assert len({len(model.piece(0, history(text))) for text in texts}) == 1
    assert len({len(model.piece(0, query(text))) for text in texts}) == 1
    named = [model.named(text) for text in texts]
    assert set().union(*named[: len(set(named))]) == set().union(*named)


def test_a_cycle_begins_with_a_rebuild_and_unfinished_ones_are_left_out() -> None:
    found = cycles(costs(10, 10, 50, 10, 10, 60, 10, 70, 10))
    assert [[cost.tokens for cost in one] for one in found] == [[50, 10, 10], [60, 10]]


@pytest.mark.parametrize(
    ("name", "tokens", "seconds", "last"),
    [
        ("rebuilds", [10, 50, 10, 50, 10] * 3, 1.0, 100),
        ("tokens_of_a_frame_beyond_the_cap", [10, 50, 10, 50, 101] * 10, 1.0, 100),
        ("tokens_per_cycle_apart", [10, 50, 10, 50, 40] * 10, 1.0, 100),
        ("seconds_to_unbounded", [10, 50, 10, 50, 10] * 10, 2.1, 100),
        ("memory_grown", [10, 50, 10, 50, 10] * 12, 1.0, 103),
        ("", [50, 10, 10] * 15, 1.0, 100),
    ],
)
def test_every_promise_that_is_broken_is_told_by_name(
    name: str, tokens: list[int], seconds: float, last: int
) -> None:
    story = [*costs(*tokens, seconds=seconds), *costs(10, seconds=seconds, resident=last)]
    rebuilds = sum(cost.rebuilt for cost in story)
    receipt = {"context": {"limit_tokens": 100, "rebuilds": rebuilds}}
    found = checks(story, costs(15, 15), receipt)
    assert found["rebuilds_not_in_receipt"]["held"]
    assert all(found[one]["held"] for one in found) if not name else not found[name]["held"]


def test_too_few_cycles_to_compare_are_refused() -> None:
    with pytest.raises(ConfigError, match="make 1 whole cycles; 2 are needed"):
        checks(costs(10, 50, 10, 50), costs(10), {"context": {"limit_tokens": 60, "rebuilds": 2}})


def test_a_measured_story_says_what_it_read_and_held(pipeline: StoryPipeline) -> None:
    result = measure(pipeline, 20, "120", "told")
    assert len(result["frames"]) == 20 and len(result["free"]) == 7
    assert result["context"]["limit_tokens"] == 120 and result["context"]["rebuilds"] >= 3
    assert result["checks"]["tokens_of_a_frame_beyond_the_cap"]["held"]
    assert result["checks"]["rebuilds"]["held"] == (result["context"]["rebuilds"] >= 10)
    drawn, free = ([Cost(**one) for one in result[name]] for name in ("frames", "free"))
    assert "Tokens held" in plot(drawn, free, 120)


def test_a_chart_is_one_svg_with_every_line_in_it() -> None:
    text = svg(
        [Panel("a < b", [Line("one", [1, 2, 3]), Line("two", level=2.5)]), Panel("c", [Line("", [4])])], "n"
    )
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    drawn = [path for path in root.iter(f"{space}path") if path.get("fill") == "none"]
    assert len(drawn) == 3 and "a < b" in [one.text for one in root.iter(f"{space}text")]


def test_narrow_keys_and_values_are_compared_over_toon_stories(pipeline: StoryPipeline) -> None:
    pytest.importorskip("skia")
    from storyv_lite.train.toonworld.stories import sample_story

    rows = compare(pipeline.model, [sample_story(1, 4, "test")])
    assert [one.width for one in rows] == ["fp32", "fp16", "int8"]
    assert [one.bytes_per_token for one in rows] == [8 * 128, 8 * 64, 8 * 36]
    assert all(BOUND < one.lowest <= one.mean <= 1 + 1e-9 for one in rows)
    assert rows[0].lowest == pytest.approx(1, abs=1e-9) and rows[1].lowest < rows[0].lowest
