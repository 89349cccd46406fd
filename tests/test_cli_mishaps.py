"""What is lost, broken or gone beside a story, and what is done and said then."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storyv_lite.cli.drawing import writing
from storyv_lite.memory import resident_memory
from storyv_lite.runtime import planning
from storyv_lite.runtime.journal import JOURNAL, read_journal

Run = Callable[..., tuple[int, str, str]]
Said = Callable[..., str]
Answer = Callable[..., dict[str, Any]]

QUICK = ("--steps", "2", "--seed", "3", "--device", "cpu")
FILES = {"day.txt": "Milo is waving.\nHe is standing.\nLuna is sitting.\n"}
DRAWN_WITH = QUICK
pytestmark = pytest.mark.usefixtures("work")


def pictures(folder: str | Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(Path(folder).glob("frame-*.png"))]


def stop(folder: str) -> None:
    """Leave a story as a kill behind its first frame does."""
    Path(folder).mkdir()
    journal = read_journal(Path("whole"))
    assert journal is not None
    journal.without(range(1, 3)).write(Path(folder))
    shutil.copy("whole/frame-01.png", folder)


def test_a_branch_of_a_story_that_lost_a_frame_draws_it_again(done: Said) -> None:
    before = pictures("whole")
    Path("whole/frame-02.png").unlink()
    err = done("redraw", "whole", "--frame", "3", "--seed", "9", "--branch", "b")
    assert "drawn again from frame 2 on" in err
    again = pictures("whole-b")
    assert again[:2] == before[:2] and again[2] != before[2]


def test_a_journal_that_cannot_be_read_is_passed_over_for_one_that_can(done: Said) -> None:
    stop("day-storyboard")
    Path("day-storyboard-old").mkdir()
    Path("day-storyboard-old", JOURNAL).write_text("{\n")
    err = done("render", "day.txt", "--resume", *QUICK)
    assert "passed over: " in err and "day-storyboard-old" in err
    assert "folder: day-storyboard (the newest" in err and pictures("day-storyboard") == pictures("whole")


def test_a_reader_that_has_gone_is_no_full_disk() -> None:
    with pytest.raises(BrokenPipeError), writing(Path("whole"), "storyv-lite continue whole"):
        raise BrokenPipeError


def test_a_scheduler_that_is_none_is_a_damaged_bundle(refused: Said) -> None:
    file = Path("bundles/tiny/manifest.json")
    record = json.loads(file.read_text())
    record["model"]["scheduler"]["num_train_timesteps"] = "1000"
    file.write_text(json.dumps(record))
    assert "`num_train_timesteps` is `'1000'`" in refused(4, "render", "day.txt")


def test_a_story_keeps_its_budget_or_is_refused_where_there_is_no_longer_room(
    monkeypatch: pytest.MonkeyPatch, refused: Said, answer: Answer
) -> None:
    held = resident_memory()
    monkeypatch.setattr(planning, "resident_memory", lambda: held)
    least = refused(6, "plan", "day.txt", "--ram", "1MiB", "--device", "cpu")
    ram = f"{int(least.split('--ram ')[1].split('MiB')[0]) + 2}MiB"
    answer("render", "day.txt", "-o", "tight", *QUICK, "--ram", ram)
    Path("tight/frame-03.png").unlink()
    grown = replace(held, anonymous=(held.anonymous or 0) + 2**26)
    monkeypatch.setattr(planning, "resident_memory", lambda: grown)
    assert "needs at least" in refused(6, "render", "day.txt", "--resume", "-o", "tight", *QUICK)
    monkeypatch.setattr(planning, "resident_memory", lambda: held)
    again = answer("render", "day.txt", "--resume", "-o", "tight", *QUICK)
    assert again["plan"]["budget"]["ram"] == int(ram.removesuffix("MiB")) * 2**20


def test_keys_and_values_that_a_plan_narrows_are_told_and_are_no_other_wish(
    monkeypatch: pytest.MonkeyPatch, done: Said, answer: Answer
) -> None:
    stop("day")
    monkeypatch.setattr(planning, "WIDTHS", ("int8",))  # as where nothing wider fits
    err = done("render", "day.txt", "--resume", "-o", "day", *QUICK, "--ram", "8GB")
    assert "bytes may differ" in err and "keys and values" in err
    receipt = json.loads(Path("day/story.json").read_text())
    assert receipt["plan"]["choice"]["kv_width"] == receipt["context"]["kv_cache"] == "int8"
    wide = json.loads(Path("whole/story.json").read_text())["context"]
    assert wide["kv_cache"] == "fp32" and wide["bytes_per_token"] > receipt["context"]["bytes_per_token"]


def test_a_strict_budget_is_refused_where_nobody_measures(
    monkeypatch: pytest.MonkeyPatch, refused: Said
) -> None:
    monkeypatch.setattr("storyv_lite.cli.reopening.take_peak", lambda: None)
    err = refused(2, "render", "day.txt", *QUICK, "--ram", "8GB", "--strict-budget")
    assert "`--strict-budget` holds main memory alone to the plan" in err
