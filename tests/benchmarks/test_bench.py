"""`storyv-lite bench`: what is measured, what becomes of failures, what is written."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from storyv_lite.benchmarks import measure
from storyv_lite.benchmarks.child import PHASES, fold_phases
from storyv_lite.benchmarks.measure import Row, Spread, ask, ask_or_raise, repeat_captions, summarize
from storyv_lite.benchmarks.report import cost_table, make_record, markdown, markdown_table
from storyv_lite.bundle import Bundle
from storyv_lite.cli import app
from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.story import read_story

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole bundle and one with a flipped byte."""
    folder = tmp_path_factory.mktemp("bench")
    shutil.copytree(tiny_bundle, folder / "bundles" / "good")
    shutil.copytree(tiny_bundle, folder / "bundles" / "damaged")
    damaged = Bundle.open(folder / "bundles" / "damaged")
    graph = damaged.file(damaged.variant(Component.UNET).parts[0].file)
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def outcome(folder: Path) -> tuple[int, str]:
    """Exit code and stdout of one run over both bundles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = "--bundle good --bundle damaged --frames 3 --repeat 1 --threads 1"
        written = "--report report.md --record record.json --json"
        result = CliRunner().invoke(app, ["bench", *arguments.split(), *written.split()])
    return result.exit_code, result.stdout


@pytest.fixture(scope="module")
def rows(outcome: tuple[int, str]) -> dict[str, dict[str, Any]]:
    record = json.loads(outcome[1].splitlines()[-1])
    return {row["bundle"]: row for row in record["rows"]}


def test_every_bundle_has_a_row_with_seconds_bytes_and_memory(rows: dict[str, dict[str, Any]]) -> None:
    good = rows["good"]
    counts = {name: spread["count"] for name, spread in good["seconds"].items()}
    ones = ("ready", "cold_start", "story", "cold_frame", "first_frame")
    assert counts == {**dict.fromkeys(ones, 1), "steady_frame": 2}
    assert set(good["phases"]) == set(PHASES)
    assert 0 < good["seconds"]["ready"]["median"] < good["seconds"]["cold_start"]["median"]
    assert good["seconds"]["cold_start"]["median"] < good["seconds"]["story"]["median"]
    assert good["found"]["bytes"] > sum(part["bytes"] for part in good["found"]["components"].values())
    assert good["memory"]["device"] is None, "there is no device memory on a CPU"
    if sys.platform == "linux":
        assert 30 * 2**20 < good["memory"]["peak"] < 2**30
        assert good["memory"]["anonymous"] and good["memory"]["file"]


def test_a_bundle_that_cannot_be_drawn_is_a_row_that_says_so_and_fails_the_command(
    outcome: tuple[int, str], rows: dict[str, dict[str, Any]]
) -> None:
    assert outcome[0] == 1
    assert "SHA-256 differs" in rows["damaged"]["error"]
    assert not rows["damaged"]["seconds"]
    assert "damaged failed: " in outcome[1]


def test_the_report_names_the_machine_the_versions_and_the_command(
    outcome: tuple[int, str], folder: Path
) -> None:
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "processor: " in report and "onnxruntime" in report and "load average" in report
    assert "storyv-lite bench --bundle good --bundle damaged --frames 3 --repeat 1" in report
    assert "--report report.md --record record.json --force" in report
    assert "| damaged | failed: " in report
    assert str(folder) not in report and str(folder) not in outcome[1]


def test_the_record_is_what_was_printed(outcome: tuple[int, str], folder: Path) -> None:
    assert json.loads((folder / "record.json").read_text()) == json.loads(outcome[1].splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        ("--bundle nowhere", 4),
        ("--bundle good --repeat 0", 2),
        ("--bundle good --frames 1", 2),
        ("--bundle good --report report.md", 2),
        ("--bundle good --story nowhere.txt", 2),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_measured(
    outcome: tuple[int, str], folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, exit_code: int
) -> None:
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(app, ["bench", *arguments.split()]).exit_code == exit_code


def python(source: str) -> list[str]:
    return [sys.executable, "-c", source]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals of this kind")
def test_a_killed_child_is_an_error_that_speaks_of_memory() -> None:
    answer = ask(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), "{}")
    assert answer["error"] == "killed by SIGKILL, as the system does when memory runs out"


def test_a_child_that_runs_out_of_memory_says_so() -> None:
    source = (
        "import sys; from storyv_lite.benchmarks.child import answer; sys.exit(answer(lambda _: [0] * 2**60))"
    )
    assert ask(python(source), "{}") == {"error": "memory ran out", "kind": "MemoryError", "hint": ""}


def test_a_child_that_crashes_gives_its_last_words() -> None:
    assert (
        ask(python("raise RuntimeError('bad allocation')"), "{}")["error"] == "RuntimeError: bad allocation"
    )
    assert (
        ask(python("print('{}'); raise SystemExit(3)"), "{}")["error"]
        == "ended with exit code 3 and no answer"
    )


def test_a_step_that_must_answer_raises_with_its_name_its_reason_and_its_hint() -> None:
    source = "import json, sys; print(json.dumps({'given': json.load(sys.stdin)}))"
    assert ask_or_raise("first", python(source), {"a": 1}) == {"given": {"a": 1}}
    told = {"error": "no room", "hint": "make some"}
    with pytest.raises(BackendError, match="`second` failed: no room") as fault:
        ask_or_raise("second", python(f"print({json.dumps(told)!r})"), {})
    assert fault.value.hint == "make some"


def test_a_child_that_hangs_is_ended() -> None:
    assert ask(python("import time; time.sleep(60)"), "{}", timeout_s=0.2)["kind"] == "Timeout"


def test_one_failed_process_fails_the_row() -> None:
    assert summarize("b", [{"error": "no room", "kind": "Crash"}]) == Row("b", error="no room")


def test_a_spread_is_median_percentile_and_count() -> None:
    assert Spread.of([]) is None
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 1)
    assert Spread.of([float(n) for n in range(11)]) == Spread(5.0, 9.0, 11)


def test_phases_that_make_conditioning_are_one() -> None:
    folded = fold_phases({"look": 1.0, "read": 2.0, "map": 3.0, "text": 5.0, "draw": 7.0})
    assert folded == pytest.approx({"look": 0.001, "read": 0.002, "condition": 0.008, "draw": 0.007})


def test_a_story_is_cut_or_begun_again_to_the_frames_asked_for() -> None:
    assert repeat_captions("abc", None) == ("a", "b", "c")
    assert repeat_captions("abc", 2) == ("a", "b")
    assert repeat_captions("abc", 5) == ("a", "b", "c", "a", "b")


def test_the_story_measured_by_default_is_the_picnic_of_the_examples() -> None:
    story = read_story(ROOT / "examples" / "picnic.txt")
    assert tuple(caption.text for caption in story.captions) == measure.PICNIC


def test_a_report_of_failures_alone_is_still_a_report() -> None:
    rows = [Row("big", error="killed | by SIGKILL")]
    record = make_record(rows, ("a", "b"), 1, "storyv-lite bench")
    assert "failed: killed \\| by SIGKILL" in markdown(record, rows)
    assert "Seconds per phase" not in markdown(record, rows)
    assert len({line.count(" | ") for line in markdown_table(cost_table(rows)).splitlines()}) == 1
