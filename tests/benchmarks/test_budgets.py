"""The comparison of plans with measured memory: which budgets, what counts as a fault, a real child."""

import sys
from pathlib import Path
from typing import Any

import pytest

from storyv_lite.benchmarks.budgets import MIB, budgets_of, faults, measure, table
from storyv_lite.benchmarks.footprint import probe


def row(measured: int, phase: int = 90 * MIB) -> dict[str, Any]:
    phases = [{"name": "draw", "ram_bytes": 100 * MIB, "measured_bytes": phase}]
    return {
        "budget_bytes": 110 * MIB,
        "planned_bytes": 100 * MIB,
        "measured_bytes": measured,
        "kept": [],
        "guidance_passes": 2,
        "load_seconds_per_frame": 0.5,
        "seconds": 2.0,
        "phases": phases,
    }


def test_budgets_go_from_the_least_to_more_than_everything() -> None:
    found = budgets_of({"ram_bytes": 160 * MIB - 5}, 100 * MIB - 5, 6)
    assert found[0] == 100 * MIB and found[-1] == 168 * MIB and found == sorted(found) and len(found) == 6


def test_a_plan_that_does_not_hold_is_a_fault() -> None:
    assert faults(row(95 * MIB)) == []
    assert faults(row(101 * MIB)) == ["101% of what was planned"]
    assert faults(row(84 * MIB)) == ["84% of what was planned"]
    assert faults(row(95 * MIB, phase=101 * MIB)) == ["`draw` took 101.0 MiB of 100.0 MiB"]
    assert faults({"budget_bytes": 1, "error": "no room"}) == ["no room"]
    assert "| 110.0 MiB | 100.0 MiB | 95.0 MiB | 95% | nothing | two passes |" in table([row(95 * MIB)])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_story_drawn_by_the_command_is_measured_against_its_plan(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Milo is waving.\nHe is standing.\n")
    command = [sys.executable, "-m", "storyv_lite"]
    found = measure(command, tmp_path / "story.txt", tiny_bundle, 200 * MIB)
    assert not [fault for fault in faults(found) if "what was planned" not in fault]
    assert found["measured_bytes"] <= found["planned_bytes"] <= 200 * MIB
    assert "--ram" in measure(command, tmp_path / "story.txt", tiny_bundle, MIB)["error"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_component_takes_is_measured_above_what_was_there(tiny_bundle: Path) -> None:
    request = {"bundle": str(tiny_bundle), "threads": 1, "batch": 2, "tile": 0, "component": "unet"}
    found = probe(request)
    assert found["scheme"] == "fp32" and found["bytes"] > 0
    assert found["loaded"] <= found["loading"] and 0 < found["working"] < 64 * MIB
