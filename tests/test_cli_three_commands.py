"""The promise of the README: three commands in an empty folder, in that order, with no other options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def command(folder: Path, *arguments: str) -> list[str]:
    """Run one command in `folder`; its lines on stdout."""
    answer = subprocess.run(
        [sys.executable, "-m", "storyv_lite", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout.splitlines()


@pytest.mark.slow
def test_train_export_and_render_work_in_an_empty_folder_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Milo is waving in the meadow.\nHe is jumping.\n")

    trained = command(tmp_path, "train", "--preset", "toon-smoke")
    assert trained[-2:] == ["wrote checkpoints/toon-smoke", "next: storyv-lite export --int4"]

    exported = command(tmp_path, "export", "--int4")
    assert exported[-2].startswith("wrote bundles/toon-smoke-int4 (")
    assert exported[-1] == "next: storyv-lite render STORY.txt"

    drawn = command(tmp_path, "render", "story.txt")
    assert "wrote story-storyboard: 2 frames, storyboard.png, index.html, story.json" in drawn
    receipt = json.loads((tmp_path / "story-storyboard" / "story.json").read_text())
    assert receipt["bundle"]["name"] == "toon-smoke-int4" and receipt["unknown_words"] == []
