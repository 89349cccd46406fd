"""What branches take on the disk: shared files count once, and ten are less than three stories."""

import json
import os
from pathlib import Path

import pytest

from storyv_lite.benchmarks import branches
from storyv_lite.benchmarks.branches import own_bytes, table


def test_a_file_that_two_folders_share_belongs_to_the_first(tmp_path: Path) -> None:
    for name in ("whole", "branch"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole/a").write_bytes(b"a" * 70_000)
    os.link(tmp_path / "whole/a", tmp_path / "branch/a")
    (tmp_path / "branch/b").write_bytes(b"b" * 9_000)
    assert 9_000 <= own_bytes(tmp_path / "branch", [tmp_path / "whole"]) < 70_000
    assert own_bytes(tmp_path / "branch") >= 79_000


def test_the_table_sums_up_what_was_redrawn_alone_and_with_what_follows() -> None:
    rows = [
        {"frame": frame, "follow": follow, "bytes": 1024 * frame * (1 + follow)}
        for frame in (1, 2)
        for follow in (False, True)
    ]
    assert table({"whole_bytes": 2048, "branches": rows})[1:] == [
        ["frame 1", "1.0 KiB", "2.0 KiB"],
        ["frame 2", "2.0 KiB", "4.0 KiB"],
        ["sum", "3.0 KiB", "6.0 KiB"],
        ["of a whole story", "1.50", "3.00"],
    ]


@pytest.mark.slow
def test_ten_branches_of_a_tiny_story_take_less_than_three_copies(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "branches.json"
    assert branches.main(["--bundle", str(tiny_bundle), "--steps", "1", "--write", str(file)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(file.read_text()) and len(record["branches"]) == 10
    assert record["branches_bytes"] < 3 * record["whole_bytes"]
