"""A checkpoint as the runtime sees it: the facts of the bundle that is made of it."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import (
    checkpoint_hash,
    find_checkpoint,
    frames_read,
    open_checkpoint,
    train_command,
    unfinished,
)
from storyv_lite.components import Component
from storyv_lite.errors import BundleError


def test_a_checkpoint_tells_what_its_bundle_tells(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    ours, theirs = open_checkpoint(tiny_checkpoint), Bundle.open(tiny_bundle)
    assert ours.model == theirs.model and ours.characters == theirs.characters
    assert ours.tokenizers == theirs.tokenizers and ours.vocabulary == theirs.vocabulary
    assert ours.sha256 == theirs.provenance["checkpoint_sha256"]
    assert set(ours.components) == set(Component)
    for entry in ours.files():
        assert ours.file(entry.file).is_file()


def test_a_name_means_a_folder_of_checkpoints_and_a_path_means_itself(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoints" / "mine")
    assert find_checkpoint("mine", tmp_path) == tmp_path / "checkpoints" / "mine"
    assert find_checkpoint("checkpoints/mine", tmp_path) == tmp_path / "checkpoints" / "mine"
    assert find_checkpoint(tiny_checkpoint, tmp_path) == tiny_checkpoint
    with pytest.raises(BundleError, match="`other` is no checkpoint"):
        find_checkpoint("other", tmp_path)


@pytest.mark.parametrize("lost", ["sampler", "vocabulary.json", "unet/model.safetensors"])
def test_an_unfinished_checkpoint_is_refused(tiny_checkpoint: Path, tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "unfinished"
    shutil.copytree(tiny_checkpoint, folder)
    if (folder / lost).is_file():
        (folder / lost).unlink()
    else:
        record = json.loads((folder / "checkpoint.json").read_text())
        del record[lost]
        (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(BundleError, match=lost) as caught:
        open_checkpoint(folder)
    assert f"storyv-lite train --preset tiny -o {folder}" in caught.value.hint


def test_the_command_that_goes_on_names_folder_stage_and_the_preset_of_the_record(tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    assert train_command(folder) == f"storyv-lite train -o '{folder}'"
    folder.mkdir()
    (folder / "checkpoint.json").write_text('{"schema": 1, "preset": "micro"}')
    command = f"storyv-lite train --preset micro -o '{folder}' --stage align"
    assert train_command(folder, "align") == command


def test_a_save_that_was_cut_off_is_no_part_of_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / ".unet.new").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / ".unet.new" / name).write_bytes(b"half")
    assert checkpoint_hash(folder) == checkpoint_hash(tiny_checkpoint)


@pytest.mark.parametrize("component", ["unet", "language_model"])
@pytest.mark.parametrize("left", [("old", "new"), ("old",)])
def test_a_save_cut_off_between_its_renames_is_told_with_what_finishes_it(
    tiny_checkpoint: Path, tmp_path: Path, component: str, left: tuple[str, ...]
) -> None:
    folder = tmp_path / "cut off"
    shutil.copytree(tiny_checkpoint, folder)
    for end in left:
        shutil.copytree(folder / component, folder / f".{component}.{end}")
    shutil.rmtree(folder / component)
    with pytest.raises(BundleError, match="cut off before") as caught:
        open_checkpoint(folder)
    command, source, target = shlex.split(caught.value.hint)
    assert command == "mv" and source.endswith(left[-1])
    Path(source).rename(target)
    assert open_checkpoint(folder).sha256 == checkpoint_hash(tiny_checkpoint)


def test_a_model_trained_before_contexts_had_a_limit_reads_what_it_was_trained_on() -> None:
    assert frames_read({"align": {"max_frames": 16}}) == 16


def test_stages_that_have_begun_and_are_not_done_are_unfinished(tmp_path: Path) -> None:
    stages = {"autoencoder": {"done": True}, "char_ldm": {"done": False}, "judge": {"done": False}}
    (tmp_path / "checkpoint.json").write_text(json.dumps({"schema": 1, "stages": stages}), encoding="utf-8")
    assert unfinished(tmp_path) == ["char_ldm"]
