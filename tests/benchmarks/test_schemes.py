"""The table of bundles in different widths: judged once, measured every time."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from storyv_lite.benchmarks.measure import Row, Spread
from storyv_lite.benchmarks.schemes import Measured, judge_all, main, table
from storyv_lite.benchmarks.scores import Estimate

WIDE = Measured(
    "wide",
    "0" * 64,
    Row("wide", seconds={"steady_frame": Spread(0.5, 0.6, 4)}, memory={"peak": 2**30}),
    {"bytes": 2.0**20, "psnr_db": 200.0},
    Estimate(90.0, 85.0, 95.0),
    Estimate(0.0, 0.0, 0.0),
)


def test_a_bundle_has_what_it_costs_beside_what_it_loses_and_a_failed_one_says_why() -> None:
    failed = Measured(
        "narrow",
        "1" * 64,
        Row("narrow", error="killed by SIGKILL"),
        {"bytes": 2.0**19, "psnr_db": 31.25},
        Estimate(89.0, 84.0, 94.0),
        Estimate(1.0, -0.5, 2.5),
    )
    first, second = table([WIDE, failed])[1:]
    assert first == ["wide", "1.0 MiB", "0.5 (0.6, 4)", "1.0 GiB", "", "90.0 (85.0 to 95.0)", ""]
    assert second[2:5] == ["failed: killed by SIGKILL", "", "31.2"]
    assert second[6] == "+1.0 (-0.5 to +2.5)"


def test_judged_stories_are_kept_and_only_missing_ones_are_drawn_again(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tiny_bundle_int8: Path,
    tiny_judge: Path,
    readable: Callable[[int, int], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed, judge = readable(2, 2), tiny_judge / "judge"
    command = ["--wide", str(tiny_bundle), str(tiny_bundle_int8), "--checkpoint", str(tiny_checkpoint)]
    command += ["--judge", str(judge), "--records", str(tmp_path), "--processes", "1"]
    assert main([*command, "--stories", "2", "--frames", "2", "--seed", str(seed)]) == 0
    said = capsys.readouterr()
    wide, narrow = json.loads(said.out.splitlines()[-1])["rows"]
    assert [row["name"] for row in (wide, narrow)] == [tiny_bundle.name, tiny_bundle_int8.name]
    assert wide["lost"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert wide["fidelity"]["psnr_db"] > 100 > narrow["fidelity"]["psnr_db"]
    assert narrow["fidelity"]["bytes"] < wide["fidelity"]["bytes"]
    assert narrow["cost"]["memory"]["peak"] > 0 and "story 2 of 2" in said.err

    files = sorted(tmp_path.rglob("*.json"))
    whole = {file: file.read_bytes() for file in files}
    assert [file.name for file in files] == ["0000.json", "0001.json"] * 2
    files[1].unlink()
    told: list[str] = []
    bundles = {path.name: path for path in (tiny_bundle, tiny_bundle_int8)}
    judged = judge_all(bundles, judge, 2, 2, seed, tmp_path, told.append)
    assert [line for line in told if line.startswith("story")] == ["story 2 of 2"]
    assert {file: file.read_bytes() for file in files} == whole
    assert [row.story for row in judged[tiny_bundle.name].rows] == [0, 0, 1, 1]


def test_a_bundle_that_is_not_there_and_two_of_one_name_are_refused(
    tiny_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ["--wide", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint)]
    assert main([*wide, "nowhere"]) == 4
    assert main([*wide, str(tiny_bundle)]) == 2
    assert "one name" in capsys.readouterr().err
