"""The benchmark that kills: it counts what it saw, and a small one passes."""

import json
from pathlib import Path

import pytest

from storyv_lite.benchmarks import kills
from storyv_lite.benchmarks.kills import Killed, table


def test_the_table_has_one_row_per_damage_and_counts_what_was_identical() -> None:
    killed = [
        Killed("none", 2, 1, True, ""),
        Killed("none", 1, 4, False, "error"),
        Killed("torn journal", 1, 0, True, ""),
    ]
    assert table(killed)[1:] == [
        ["none", "2", "3", "2.5", "1 of 2"],
        ["torn journal", "1", "1", "0.0", "1 of 1"],
    ]


def test_a_bundle_that_is_not_there_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert kills.main(["--bundle", "none", "--kills", "1"]) == 1
    assert "`none` is no bundle" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_stories_end_with_the_same_bytes(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kills.main(["--bundle", str(tiny_bundle), "--kills", "8"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["identical"] and {"full disk", "torn journal", "truncated frame"} <= {
        story["damage"] for story in result["stories"]
    }
