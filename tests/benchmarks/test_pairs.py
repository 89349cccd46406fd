"""Two records of judged frames, compared in pairs."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from storyv_lite.benchmarks.pairs import main, read_rows
from storyv_lite.benchmarks.scores import Row, Shown
from storyv_lite.train.toonworld.scene import Actor

RIGHT = Shown("beach", (Actor("milo", "waving", "cake"),))
ROWS = [Row(story, 1, "Milo waves.", False, "name", 0, 0, False, RIGHT, RIGHT) for story in range(4)]


def write(file: Path, rows: list[Row]) -> Path:
    file.write_text(json.dumps({"rows": [asdict(row) for row in rows]}), encoding="utf-8")
    return file


def test_a_record_comes_back_as_the_rows_it_was_written_from(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path / "a.json", ROWS)) == ROWS


def test_the_difference_of_two_records_has_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = [replace(ROWS[0], seen=Shown("hill", ())), *ROWS[1:]]
    files = write(tmp_path / "a.json", ROWS), write(tmp_path / "b.json", worse)
    assert main([str(file) for file in files]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "| char_acc | +25.00 | +0.00 to +75.00 |" in said
    found = json.loads(said[-1])["differences"]
    assert found["char_acc"]["value"] == 25.0 and found["clip_t"]["value"] is None


def test_records_of_other_stories_and_other_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = write(tmp_path / "a.json", ROWS), write(tmp_path / "b.json", ROWS[:2])
    assert main([str(file) for file in files]) == 2
    assert main([str(files[0]), str(tmp_path / "none.json")]) == 2
    assert "no record" in capsys.readouterr().err
