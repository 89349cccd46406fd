"""Budgets on the command line: what is printed, obeyed, recorded and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storyv_lite.cli.reopening import resuming
from storyv_lite.memory import resident_memory
from storyv_lite.runtime import phases, planning

Run = Callable[..., tuple[int, str, str]]
Said = Callable[..., str]
Answer = Callable[..., dict[str, Any]]

TOLD = "Milo is waving.\nHe is standing.\nLuna is sitting.\n"
QUICK = ("--steps", "2", "--seed", "3", "--device", "cpu")
FILES = {"day.txt": TOLD}
pytestmark = pytest.mark.usefixtures("work")
PHASES = ["load", "look", "read", "draw", "decode", "finish"]


def pictures(folder: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(Path(folder).glob("frame-*.png"))]


def tight(refused: Said) -> str:
    """The smallest budget, as a refusal names it."""
    err = refused(6, "plan", "day.txt", "--ram", "1MiB", "--device", "cpu")
    return f"{int(err.split('--ram ')[1].split('MiB')[0]) + 2}MiB"


def test_a_plan_is_printed_by_phase_and_as_json(run: Run, answer: Answer) -> None:
    code, out, err = run("plan", "day.txt", "--ram", "4GB", "--device", "cpu")
    assert code == 0 and "bundle: " in err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["phase", *PHASES]
    assert {"most:", "weights:", "stays", "context:", "guidance:", "price:"} <= {
        line.split()[0] for line in lines
    }
    found = answer("plan", "day.txt", "--device", "cpu")
    assert [phase["name"] for phase in found["phases"]] == PHASES[1:]
    assert found["demand"]["frames"] == 3 and found["path"].endswith("bundles/tiny")
    assert answer("plan", "day.txt", "--steps", "7", "--device", "cpu")["demand"]["steps"] == 7
    assert answer("plan", "--frames", "9", "--device", "cpu")["demand"]["frames"] == 9


def test_a_budget_that_is_too_small_is_refused_before_anything_is_written(refused: Said) -> None:
    for command in ("plan", "render"):
        err = refused(6, command, "day.txt", "--ram", "1MiB", "--device", "cpu")
        assert "a story of 3 frames drawn with `tiny` needs at least" in err
        assert "hint: give `--ram " in err and "shorter story" in err
    assert {path.name for path in Path().iterdir()} == {"bundles", "day.txt"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("plan", "--ram", "much"), 2, "`much` is not a size"),
        (("plan", "--vram", "4GB", "--device", "cpu"), 2, "`--vram` is for a GPU"),
        (("plan", "day.txt", "--frames", "3"), 2, "its own number of frames"),
        (("plan", "--steps", "0"), 2, "0 steps were asked for"),
        (("plan", "--tile", "2"), 2, "2 cells of latents"),
        (("render", "day.txt", "--tile", "2"), 2, "2 cells of latents"),
        (("render", "day.txt", "--checkpoint", "toon", "--ram", "4GB"), 2, "a memory plan is for a bundle"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[str, ...], code: int, message: str, refused: Said
) -> None:
    assert message in refused(code, *arguments)


def test_a_plan_of_no_frames_is_refused(run: Run) -> None:
    assert run("plan", "--frames", "0")[0] == 2


def test_a_budget_is_obeyed_and_recorded_and_changes_no_picture(answer: Answer) -> None:
    free = answer("render", "day.txt", "-o", "free", *QUICK)
    assert free["plan"]["budget"] == {"ram": None, "vram": None}
    story = answer("render", "day.txt", "-o", "tight", *QUICK, "--ram", "8GB")
    plan = story["plan"]
    assert plan["budget"]["ram"] == 8 * 10**9
    assert [phase["name"] for phase in plan["phases"]] == PHASES
    assert all(phase["measured_bytes"] for phase in plan["phases"])
    assert pictures("free") == pictures("tight")
    assert "--ram 8000000000B" in story["command"]


def test_a_story_goes_on_as_it_was_planned(
    monkeypatch: pytest.MonkeyPatch, done: Said, refused: Said, answer: Answer
) -> None:
    held = resident_memory()  # a command begins with this; these here share a process that grows
    monkeypatch.setattr(planning, "resident_memory", lambda: held)
    ram = tight(refused)
    whole = answer("render", "day.txt", "-o", "whole", *QUICK, "--ram", ram)
    assert whole["plan"]["budget"]["ram"] and whole["plan"]["load_seconds_per_frame"] > 0
    shutil.copytree("whole", "day")
    Path("day/frame-03.png").unlink()
    again = answer("continue", "day", "--device", "cpu")
    assert again["plan"]["choice"] == whole["plan"]["choice"]
    assert pictures("day") == pictures("whole")
    Path("day/frame-03.png").unlink()
    again = answer("render", "day.txt", "--resume", "-o", "day", *QUICK)
    assert again["plan"]["choice"] == whole["plan"]["choice"]
    assert "bytes may differ" not in done("render", "day.txt", "--resume", "-o", "day", *QUICK, "--ram", ram)


def test_memory_beyond_the_plan_fails_when_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, run: Run, done: Said
) -> None:
    monkeypatch.setattr(phases, "LIBRARY_BYTES", -400 * 2**20)
    done("render", "day.txt", "-o", "lenient", *QUICK, "--ram", "8GB")
    code, _, err = run("render", "day.txt", "-o", "strict", *QUICK, "--ram", "8GB", "--strict-budget")
    assert code == 6 and "more memory was used than planned: `load`" in err
    assert pictures("strict") == pictures("lenient")


def test_a_strict_budget_is_asked_for_again_by_the_command_that_goes_on() -> None:
    words = ("", "auto", "cpu")
    assert resuming(Path("day"), *words, False, True).endswith("continue day --provider cpu --strict-budget")
    assert "--strict-budget" not in resuming(Path("day"), *words, True, False)


def test_another_form_of_the_same_checkpoint_is_taken_where_the_first_is_too_large(
    tiny_bundle_int8: Path, refused: Said, answer: Answer
) -> None:
    shutil.copytree(tiny_bundle_int8, "bundles/narrow")
    for name, size in (("tiny", 80), ("narrow", 8)):
        manifest = json.loads(Path("bundles", name, "manifest.json").read_text())
        manifest["components"]["unet"]["variants"][0]["parts"][0]["bytes"] = size * 2**20
        Path("bundles", name, "manifest.json").write_text(json.dumps(manifest))
    assert answer("plan", "day.txt", "--ram", "8GB", "--device", "cpu")["path"].endswith("tiny")
    ram = f"{int(tight(refused).removesuffix('MiB')) + 20}MiB"
    assert answer("plan", "day.txt", "--ram", ram, "--device", "cpu")["path"].endswith("narrow")


def test_a_form_is_chosen_within_one_bundle_too(tiny_bundle_int8: Path, done: Said, answer: Answer) -> None:
    manifest = json.loads(Path("bundles/tiny/manifest.json").read_text())
    other = json.loads((tiny_bundle_int8 / "manifest.json").read_text())["components"]["unet"]["variants"][0]
    shutil.copytree(tiny_bundle_int8 / "unet", "bundles/tiny/unet8")
    part = other["parts"][0]
    part["file"], part["data"] = (part[key].replace("unet/", "unet8/") for key in ("file", "data"))
    manifest["components"]["unet"]["variants"].insert(0, other)
    Path("bundles/tiny/manifest.json").write_text(json.dumps(manifest))
    story = answer("render", "day.txt", "-o", "wide", *QUICK, "--ram", "8GB")
    assert story["plan"]["choice"]["schemes"]["unet"] == "fp32"
    assert pictures("wide") != [] and answer("continue", "wide", "--device", "cpu")["frames"]
    assert story["plan"]["ways"] == {"unet": "fp32"}
    assert "bytes may differ" not in done("redraw", "wide", "--frame", "1", "--device", "cpu")


def test_a_story_goes_on_under_another_budget_when_one_is_given(
    done: Said, answer: Answer, refused: Said
) -> None:
    done("render", "day.txt", "-o", "day", *QUICK)
    Path("more.txt").write_text("Luna waves.\n")
    assert "drawn with `tiny` needs at least" in refused(6, "continue", "day", "more.txt", "--ram", "1MiB")
    longer = answer("continue", "day", "more.txt", "--ram", "8GB", "--strict-budget")
    assert longer["plan"]["budget"]["ram"] == 8 * 10**9
    again = answer("redraw", "day", "--frame", "2")
    assert again["plan"]["budget"]["ram"] == 8 * 10**9, "the newest budget stays"
    other = answer("redraw", "day", "--frame", "2", "--ram", "9GB", "--branch", "wide")
    assert other["plan"]["budget"]["ram"] == 9 * 10**9
    assert "`--vram` is for a GPU" in refused(2, "redraw", "day", "--frame", "1", "--vram", "4GB")


def test_memory_beyond_the_plan_fails_in_every_command_that_draws(
    done: Said, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("render", "day.txt", "-o", "day", *QUICK, "--ram", "8GB")
    monkeypatch.setattr(phases, "LIBRARY_BYTES", -400 * 2**20)
    Path("more.txt").write_text("Luna waves.\n")
    for command in (("redraw", "day", "--frame", "1"), ("continue", "day", "more.txt")):
        code, out, err = run(*command, "--strict-budget")
        assert code == 6 and "more memory was used than planned: `" in err
        assert "wrote day" in out, "the pictures are there"
