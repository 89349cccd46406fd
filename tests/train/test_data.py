"""Frames as arrays: drawn when asked for, kept, the same for everybody."""

from pathlib import Path

import numpy as np
import pytest
import torch

from storyv_lite.errors import OutputError
from storyv_lite.train.data import FrameSet, on_white, resize
from storyv_lite.train.toonworld import draw


def small(folder: Path, seed: int = 1, split: str = "train") -> FrameSet:
    return FrameSet.open_or_make(folder, seed, 6, split, 64)


def test_frames_are_drawn_when_first_asked_for_and_kept(tmp_path: Path) -> None:
    frames = small(tmp_path / "a")
    frames.fill(np.array([2, 4]))
    assert frames.drawn.tolist() == [0, 0, 1, 0, 1, 0]
    again = small(tmp_path / "a")
    assert again.drawn.tolist() == [0, 0, 1, 0, 1, 0]
    assert np.array_equal(again.pixels[2], draw.render(frames.scenes[2], 64).image)


def test_all_frames_drawn_at_once_are_the_same_frames(tmp_path: Path) -> None:
    frames, one_by_one = small(tmp_path / "a"), small(tmp_path / "b")
    frames.fill(np.array([3]))
    frames.fill_all()
    one_by_one.fill(np.arange(6))
    assert frames.drawn.all()
    assert np.array_equal(frames.pixels, one_by_one.pixels)
    assert np.array_equal(frames.masks, one_by_one.masks)


def test_a_process_that_fails_to_draw_ends_the_drawing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = small(tmp_path / "a")
    monkeypatch.setattr(draw, "render", None)
    with pytest.raises(RuntimeError, match="ended with 1"):
        frames.fill_all()


def test_equal_seeds_give_equal_frames_and_splits_differ(tmp_path: Path) -> None:
    everything = np.arange(6)
    first, second = small(tmp_path / "a").pictures(everything), small(tmp_path / "b").pictures(everything)
    assert torch.equal(first, second)
    assert small(tmp_path / "c", split="validation").scenes != small(tmp_path / "a").scenes


def test_another_set_in_the_folder_is_replaced(tmp_path: Path) -> None:
    small(tmp_path / "a").fill(np.arange(6))
    assert small(tmp_path / "a", seed=2).drawn.sum() == 0


def test_pictures_and_masks_have_their_ranges(tmp_path: Path) -> None:
    frames = small(tmp_path / "a")
    pictures = frames.pictures(np.array([0, 3]))
    assert pictures.shape == (2, 3, 64, 64) and -1 <= pictures.min() and pictures.max() <= 1
    masks = frames.actor_masks(np.array([0, 3]), 32)
    assert masks.shape == (2, 3, 32, 32) and 0 <= masks.min() and 0.5 < masks.max() <= 1
    for row, index in enumerate((0, 3)):
        shown = (masks[row].amax((1, 2)) > 0).sum()
        assert shown == len(frames.scenes[index].actors)


def test_captions_have_several_wordings_and_follow_the_generator(tmp_path: Path) -> None:
    frames = small(tmp_path / "a")
    said = {frames.caption(0, np.random.default_rng(i)) for i in range(20)}
    assert len(said) > 3
    assert frames.caption(0, np.random.default_rng(5)) == frames.caption(0, np.random.default_rng(5))


def test_a_character_is_cut_out_on_white(tmp_path: Path) -> None:
    picture = small(tmp_path / "a").character(0, 0, 32)
    assert picture is not None and picture.shape == (32, 32, 3)
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge > 250).mean() > 0.3 and picture.min() < 200


def test_on_white_pads_to_a_square() -> None:
    pixels, mask = np.zeros((4, 8, 3), np.uint8), np.full((4, 8), 255, np.uint8)
    square = on_white(pixels, mask, 8)
    assert (square[:2] == 255).all() and (square[2:6] == 0).all() and (square[6:] == 255).all()


def test_shrinking_is_by_area() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    mean = pixels.reshape(4, 2, 4, 2, 3).astype(np.float64).mean((1, 3))
    assert np.abs(resize(pixels, 4) - mean).max() <= 1  # rounded once per direction


def test_a_disk_without_room_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="MiB free"):
        FrameSet.open_or_make(tmp_path / "a", 1, 10**9, "train", 256)
