"""A committed checkpoint: small, complete, without local state."""

import inspect
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from storyv_lite.errors import BundleError, OutputError
from storyv_lite.export.assemble import newest_checkpoint
from storyv_lite.modeling.checkpoints import load_component, record_stage
from storyv_lite.train.publish import publish


@pytest.fixture
def published(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return publish(tiny_checkpoint, tmp_path / "checkpoints" / "small")


def test_a_published_checkpoint_holds_the_same_weights_rounded_to_16_bits(
    tiny_checkpoint: Path, published: Path
) -> None:
    for config in tiny_checkpoint.glob("*/config.json"):
        wide = load_component(config.parent).state_dict()
        narrow = load_component(published / config.parent.name).state_dict()
        for name, tensor in wide.items():
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float16).float()
            assert torch.equal(narrow[name], tensor), name


def test_a_published_checkpoint_is_half_as_large_and_found_by_export(
    tiny_checkpoint: Path, published: Path
) -> None:
    def weights(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*/model.safetensors"))

    assert weights(published) < 0.6 * weights(tiny_checkpoint)
    assert not (published / "state").exists()
    assert newest_checkpoint(published.parent.parent) == published


def test_publishing_overwrites_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is there already"):
        publish(tiny_checkpoint, tmp_path)


@pytest.mark.parametrize("lost", ["calibration.jsonl", "scheduler", "unet", "characters"])
def test_nothing_is_written_of_an_unfinished_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, lost: str
) -> None:
    folder, out = tmp_path / "unfinished", tmp_path / "out"
    shutil.copytree(tiny_checkpoint, folder)
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()
    with pytest.raises(BundleError, match=lost):
        publish(folder, out / "small")
    assert not out.exists()


def test_a_stage_that_is_not_done_is_not_published(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(tiny_checkpoint, folder)
    record_stage(folder, "align", {"steps": 2, "max_train_steps": 4, "done": False})
    with pytest.raises(BundleError, match="is not finished: align") as caught:
        publish(folder, tmp_path / "out")
    assert "--stage align" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_what_a_save_that_was_cut_off_left_is_not_published(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / ".unet.new").mkdir()
    (folder / ".unet.new/config.json").write_text("{")
    names = {path.name for path in publish(folder, tmp_path / "out").iterdir()}
    assert "unet" in names and ".unet.new" not in names


def test_a_missing_argument_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["publish", "somewhere"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(inspect.getfile(publish), run_name="__main__")
    assert caught.value.code == 2 and "OUT" in capsys.readouterr().err
