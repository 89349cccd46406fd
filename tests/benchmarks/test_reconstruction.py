"""Real frames through an autoencoder: the figures are those of the pictures."""

import json
from pathlib import Path

import pytest
import torch

from storyv_lite.benchmarks import reconstruction
from storyv_lite.modeling.checkpoints import save_component
from storyv_lite.train.judge import build


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    save_component(build(32, (16, 32), 1), folder)
    return folder


def test_the_report_says_how_near_the_pictures_came_back(
    tiny_checkpoint: Path,
    judge: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reconstruction, "RESULT", tmp_path / "reconstruction.json")
    asked = [str(tiny_checkpoint), "--judge", str(judge), "--frames", "6", "--write"]
    assert reconstruction.main(asked) == 0
    out = capsys.readouterr().out.splitlines()
    report = json.loads(out[-1])
    assert report == json.loads((tmp_path / "reconstruction.json").read_text())
    assert report["frames"] == 6 and "psnr" not in report["real"]
    assert 3 < report["autoencoder"]["psnr"] < 20  # random weights give grey
    assert out[0].startswith("| figure |") and any(line.startswith("| psnr |") for line in out)


def test_a_folder_without_a_checkpoint_is_one_clear_error(
    tmp_path: Path, judge: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconstruction.main([str(tmp_path), "--judge", str(judge)]) == 4
    assert "error: " in capsys.readouterr().err
