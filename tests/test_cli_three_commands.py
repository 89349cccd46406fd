"""The promise of the README: three commands in an empty folder, in that order, with no other options.

And what makes `train` bearable: it may be killed at any time. One training serves both, as it takes minutes.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRESET = "toon-smoke"
TRAIN = ("train", "--preset", PRESET)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SECONDS_OF_TWO_CORES = 2 * 180


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "storyv_lite", *arguments]


def command(folder: Path, *arguments: str) -> list[str]:
    """Run one command in `folder`; its lines on stdout."""
    answer = subprocess.run(
        program(*arguments),
        cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.splitlines()


def stopped(folder: Path, stage: str, number: signal.Signals) -> tuple[int, str]:
    """Train until `stage` has logged something, then send the signal; exit code and stdout."""
    metrics = folder / "checkpoints" / PRESET / "metrics.jsonl"
    process = subprocess.Popen(
        program(*TRAIN),
        cwd=folder, text=True, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None:
        if metrics.is_file() and f'"stage": "{stage}", "step"' in metrics.read_text(encoding="utf-8"):
            process.send_signal(number)
            break
        time.sleep(0.1)
    return process.wait(), process.communicate()[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], float]:
    """A folder in which `train` ran unbroken, what it said, and the seconds of processor time it took."""
    folder = tmp_path_factory.mktemp("empty")
    before = os.times()
    said = command(folder, *TRAIN)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return folder, said, spent


@pytest.mark.slow
def test_train_export_and_render_work_in_an_empty_folder_in_this_order(
    trained: tuple[Path, list[str], float],
) -> None:
    folder, said, spent = trained
    assert said[-2:] == [
        f"wrote checkpoints/{PRESET}",
        f"next: storyv-lite export checkpoints/{PRESET} --int4",
    ]
    assert spent < SECONDS_OF_TWO_CORES, "three minutes on two cores, measured so that others may be busy too"

    exported = command(folder, "export", "--int4")
    assert any(line.startswith(f"wrote bundles/{PRESET}-int4 (") for line in exported[-6:])
    assert exported[-1] == "next: storyv-lite render STORY.txt"

    (folder / "story.txt").write_text("Milo is waving in the meadow.\nHe is jumping.\n")
    drawn = command(folder, "render", "story.txt")
    assert "wrote story-storyboard: 2 frames, storyboard.png, index.html, story.json" in drawn
    receipt = json.loads((folder / "story-storyboard" / "story.json").read_text())
    assert receipt["bundle"]["name"] == f"{PRESET}-int4" and receipt["unknown_words"] == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_a_killed_and_resumed_training_ends_with_the_weights_of_an_unbroken_one(
    trained: tuple[Path, list[str], float], tmp_path: Path
) -> None:
    for stage in ("autoencoder", "story_lm", "char_ldm", "align"):
        assert stopped(tmp_path, stage, signal.SIGKILL)[0] == -signal.SIGKILL, stage
        if stage == "autoencoder":  # Ctrl-C saves and says so; the next command goes on from there
            code, said = stopped(tmp_path, "image_text", signal.SIGINT)
            assert code == 130 and said.splitlines()[-1] == "not finished; the same command goes on"
    assert command(tmp_path, *TRAIN)[-1] == f"next: storyv-lite export checkpoints/{PRESET} --int4"
    unbroken, resumed = (folder / "checkpoints" / PRESET for folder in (trained[0], tmp_path))
    files = sorted(path.relative_to(unbroken) for path in unbroken.glob("*/model.safetensors"))
    assert len(files) == 10
    for file in files:
        assert (unbroken / file).read_bytes() == (resumed / file).read_bytes(), file
