"""Unseen stories are drawn by a real tiny model and read by a real tiny judge, from the command line too."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyv_lite.benchmarks import quality
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.train.toonworld.splits import SPLITS, split_of
from storyv_lite.train.toonworld.stories import ToonStory

Run = Callable[..., tuple[int, str, str]]

KEYS = (
    "char_acc char_f1 bg_acc bg_f1 char_acc_references action_acc prop_acc frechet_distance clip_t clip_i "
    "consistency n"
).split()


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> StoryPipeline:
    return StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1)


@pytest.fixture(scope="module")
def judged_checkpoint(
    tiny_checkpoint: Path, tiny_judge: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint with a judge in a folder of checkpoints; do not write into it."""
    folder = tmp_path_factory.mktemp("work") / "checkpoints" / "mine"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(tiny_judge / "judge", folder / "judge")
    return folder


def all_seeds(stories: tuple[ToonStory, ...]) -> list[int]:
    return [seed for story in stories for seed in (story.seed, *(frame.scene.seed for frame in story.frames))]


def test_no_seed_of_any_evaluation_lies_where_training_draws() -> None:
    for seed in (0, 42, 2**31):
        found = all_seeds(quality.unseen_stories(10, 5, seed))
        assert {split_of(one) for one in found} == {"test"}
        assert not any(one in SPLITS["train"] or one in SPLITS["validation"] for one in found)


def test_stories_to_choose_a_model_by_are_unseen_and_no_test_stories() -> None:
    found = all_seeds(quality.unseen_stories(10, 5, 42, "validation"))
    assert {split_of(one) for one in found} == {"validation"}
    with pytest.raises(ConfigError, match="no split `train` of unseen stories"):
        quality.unseen_stories(1, 1, 42, "train")


def test_captions_are_references_or_spelled_out_or_some_of_each() -> None:
    (story,) = quality.unseen_stories(1, 40, 0)
    references, original = quality.captions_of(story, "references"), quality.captions_of(story, "original")
    mixed = quality.captions_of(story, "mixed")
    assert references == tuple(frame.reference for frame in story.frames) != original
    assert mixed not in (references, original)
    assert all(line in pair for line, pair in zip(mixed, zip(references, original, strict=True), strict=True))


def test_eval_prints_every_figure_and_the_last_line_is_json(
    tiny_bundle: Path, tiny_judge: Path, tmp_path: Path, readable: Callable[[int, int], int], run: Run
) -> None:
    seed = readable(2, 2)
    asked = ("eval", "--bundle", tiny_bundle, "--judge", tiny_judge, "--stories", 2, "--frames", 2)
    code, out, err = run(*asked, "--seed", seed, "--record", tmp_path / "record.json", "--json")
    assert code == 0 and "char_acc" in out and "judge: " in err and "in the checkpoint asked for" in err
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert set(KEYS) <= answer.keys() and answer["n"] == 4 and answer["seed"] == seed
    assert all(low <= answer[name] <= high for name, (low, high) in answer["intervals"].items())
    assert -1 <= answer["clip_t"] <= 1 and answer["real"]["clip_i"] == pytest.approx(1, abs=1e-3)
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert "device: cpu" in err
    assert (record["drawn_with"]["device"], record["split"]) == ("cpu", "test")
    assert record["drawn_with"]["provider"] and record["drawn_with"]["threads"]
    assert len(record["rows"]) == 4 and record["char_acc"] == answer["char_acc"]
    assert run(*asked, "--record", tmp_path / "record.json")[0] == 2


def test_equal_runs_give_equal_rows_and_the_context_changes_later_frames_only(
    pipeline: StoryPipeline, tiny_judge: Path, readable: Callable[[int, int], int]
) -> None:
    stories = quality.unseen_stories(2, 2, readable(2, 2))
    judge = quality.load_judge(tiny_judge / "judge")
    first, again, alone = (
        quality.evaluate(pipeline, judge, None, stories, context=context)
        for context in ("interleaved", "interleaved", "captions")
    )
    assert first.rows == again.rows and np.array_equal(first.features, again.features)
    assert np.array_equal(first.features[0::2], alone.features[0::2])
    assert not np.array_equal(first.features[1::2], alone.features[1::2])
    assert first.rows[0].text_similarity is None


def test_unknown_captions_and_contexts_are_refused(
    pipeline: StoryPipeline, tiny_judge: Path, readable: Callable[[int, int], int]
) -> None:
    stories = quality.unseen_stories(1, 1, readable(1, 1))
    judge = quality.load_judge(tiny_judge / "judge")
    with pytest.raises(ConfigError, match="captions"):
        quality.evaluate(pipeline, judge, None, stories, captions="sung")
    with pytest.raises(ConfigError, match="context"):
        quality.evaluate(pipeline, judge, None, stories, context="nothing")


def test_without_a_judge_one_error_names_the_option(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    code, out, err = run("eval", "--bundle", tiny_bundle, "--judge", tmp_path / "nowhere")
    assert (code, out) == (4, "") and "there is no judge" in err and "--judge PATH" in err
    with pytest.raises(BundleError, match="no judge"):
        quality.find_judge(None, tmp_path, tmp_path)


def test_the_judge_of_the_folder_one_stands_in_comes_before_the_repository_s(
    tiny_judge: Path, tmp_path: Path
) -> None:
    own = tmp_path / "checkpoints" / "toon" / "judge"
    shutil.copytree(tiny_judge / "judge", own)
    assert quality.find_judge(None, None, tmp_path)[0] == own
    assert quality.find_judge(tiny_judge / "judge", None, tmp_path) == (tiny_judge / "judge", "asked for")
    assert quality.find_judge(None, tiny_judge, tmp_path)[0] == tiny_judge / "judge"


def test_another_network_is_no_judge(tiny_checkpoint: Path) -> None:
    with pytest.raises(BundleError, match="`Fusion`"):
        quality.load_judge(tiny_checkpoint / "fusion")


def test_a_bundle_and_a_checkpoint_exclude_each_other(
    tiny_bundle: Path, tiny_checkpoint: Path, run: Run
) -> None:
    code, _, err = run("eval", "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint)
    assert code == 2 and "exclude each other" in err


@pytest.mark.parametrize(
    ("option", "value", "exit_code", "says"),
    [
        ("--captions", "sung", 2, "there are no captions `sung`"),
        ("--context", "nothing", 2, "there is no context `nothing`"),
        ("--context-size", "soon", 2, "no context size"),
        ("--context-size", "3", 2, "is too small"),
        ("--kv-cache", "int2", 2, "no width of keys and values"),
        ("--device", "abacus", 5, "`abacus` is no device"),
    ],
)
def test_a_checkpoint_by_its_name_is_exported_only_for_options_that_work(
    judged_checkpoint: Path,
    run: Run,
    readable: Callable[[int, int], int],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    exit_code: int,
    says: str,
) -> None:
    monkeypatch.chdir(judged_checkpoint.parents[1])
    asked = ("--stories", 1, "--frames", 2, "--seed", readable(1, 2))
    code, out, err = run("eval", "--checkpoint", judged_checkpoint.name, *asked, option, value)
    assert (code, out) == (exit_code, "") and says in err
    assert "export" not in err
