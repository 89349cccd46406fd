"""The benchmark that kills: it counts each kind of harm by itself, and a small one passes."""

import json
from pathlib import Path

import pytest

from storyv_lite.benchmarks import kills
from storyv_lite.benchmarks.kills import FULL_DISK, Killed, counts, table

KILLED = [
    Killed(2, "none", 1, True, ""),
    Killed(1, "none", 4, False, "error"),
    Killed(3, "torn journal", 0, True, ""),
    Killed(1, FULL_DISK, 0, True, ""),
]


def test_the_table_has_one_row_per_damage_and_their_sum() -> None:
    assert table(KILLED)[1:] == [
        ["none", "2", "3", "2.5", "1 of 2"],
        ["torn journal", "1", "3", "0.0", "1 of 1"],
        ["full disk", "1", "1", "0.0", "1 of 1"],
        ["in all", "4", "7", "1.2", "3 of 4"],
    ]


def test_kills_and_each_damage_are_counted_apart() -> None:
    found = {"stories": 4, "kills": 7, "torn journal": 1, "truncated frame": 0, "full disk": 1}
    assert counts(KILLED) == found


def test_a_bundle_that_is_not_there_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.main(["--bundle", "none", "--kills", "1"]) == 4
    assert "`none` is no bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "told"), [("nowhere/kills.json", "there is no folder"), ("", "is a folder")]
)
def test_a_record_that_cannot_be_written_is_told_before_anything_is_killed(
    file: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kills.main(["--write", str(tmp_path / file)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_killed_stories_end_with_the_same_bytes(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kills.json"
    assert kills.main(["--bundle", str(tiny_bundle), "--kills", "8", "--write", str(file)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["identical"] and record["counts"]["kills"] == 8
    assert record == json.loads(file.read_text())
