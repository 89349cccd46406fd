"""`storyv-lite render --checkpoint`: weights as they are stored, drawn by PyTorch."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from storyv_lite.checkpoint import checkpoint_hash
from storyv_lite.cli import app


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Path:
    """An empty folder with a story and, in `checkpoints`, the tiny checkpoint."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "checkpoints/tiny")
    Path("day.txt").write_text("Milo is waving.\nHe is standing.\n")
    return tmp_path


def render(*arguments: str, story: str = "day.txt") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["render", story, *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_receipt_says_backend_precision_and_versions_and_its_command_draws_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, _, err = render("--checkpoint", "checkpoints/tiny", "--precision", "nf4", "--steps", "2")
    assert code == 0, err
    assert "checkpoints/tiny in nf4" in err and "device: cpu" in err
    receipt = json.loads(Path("day-storyboard/story.json").read_text())
    assert receipt["backend"] == {"name": "torch", "precision": "nf4"}
    assert {"torch", "transformers", "diffusers", "bitsandbytes", "numpy"} <= set(receipt["versions"])
    assert receipt["bundle"]["sha256"] == checkpoint_hash(Path("checkpoints/tiny"))
    command = receipt["command"].split()[3:]
    assert command[:4] == ["--checkpoint", "../checkpoints/tiny", "--precision", "nf4"]
    monkeypatch.chdir("day-storyboard")
    assert render("-o", "../again", *command, story="story.json")[0] == 0
    monkeypatch.chdir("..")
    for name in ("frame-01.png", "frame-02.png"):
        assert Path("day-storyboard", name).read_bytes() == Path("again", name).read_bytes()


def test_a_strict_budget_is_refused_where_there_is_no_plan_to_hold_it_to() -> None:
    assert render("--checkpoint", "checkpoints/tiny", "--steps", "1")[0] == 0
    before = Path("day-storyboard/story.json").read_bytes()
    for command in (["redraw", "day-storyboard", "--frame", "1"], ["continue", "day-storyboard", "day.txt"]):
        result = CliRunner().invoke(app, [*command, "--strict-budget"])
        assert result.exit_code == 2 and "there is no plan for" in result.stderr
    assert Path("day-storyboard/story.json").read_bytes() == before
    assert not Path("day-storyboard/journal.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--precision", "fp32"), 2, "`--precision` is for a checkpoint"),
        (("--checkpoint", "tiny", "--bundle", "toon"), 2, "exclude each other"),
        (("--checkpoint", "tiny", "--precision", "int3"), 2, "`int3` is no precision"),
        (("--checkpoint", "none"), 4, "`none` is no checkpoint"),
        (("--checkpoint", "tiny", "--device", "cuda"), 5, "`cuda` was asked for and does not work"),
    ],
)
def test_what_cannot_be_drawn_is_one_message_and_nothing_is_written(
    arguments: tuple[str, ...], code: int, says: str
) -> None:
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    found, out, err = render(*arguments)
    assert (found, out) == (code, "") and says in err and "\n\nhint: " in err
    assert not list(Path().glob("day-*"))


@pytest.mark.parametrize("missing", ["diffusers", "bitsandbytes"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    code, out, err = render("--checkpoint", "tiny", "--precision", "nf4")
    assert (code, out) == (3, "") and f"`{missing}` is not installed" in err
    assert err.rstrip().endswith("hint: pip install 'storyv-lite[torch]'")
    assert not list(Path().glob("day-*"))
