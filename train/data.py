"""Frames of the cartoon world as arrays: drawn when first asked for, kept in memory-mapped files.

Knows where a frame's pixels, masks, truth and captions come from; not what is learned from them. Frame i of a
set is a function of (split, seed, i), so processes may share one folder and a kill leaves nothing to repair:
a frame's flag is set after its pixels, and drawing one twice writes the same bytes.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from storyv_lite.config import TrainConfig
from storyv_lite.errors import OutputError
from storyv_lite.modeling.checkpoints import write_json
from storyv_lite.train.toonworld import captions, corpus, draw, splits
from storyv_lite.train.toonworld.scene import Scene
from storyv_lite.train.workers import spare_cores

MAX_ACTORS = 3
MASK_SIZE = 128

FRAMES = Path("state") / "frames-train"  # in a checkpoint folder

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSet:
    """`len(scenes)` frames; arrays hold zeros where nothing was asked for yet (see `fill`)."""

    scenes: Sequence[Scene]
    pixels: Pixels  # (N, S, S, 3)
    masks: Pixels  # (N, MAX_ACTORS, MASK_SIZE, MASK_SIZE), 0..255, in actor order
    drawn: Pixels  # (N,)

    @staticmethod
    def open_or_make(folder: Path, seed: int, count: int, split: str, size: int = 256) -> "FrameSet":
        """Open the set in `folder`, or begin it there; another set found there is replaced.

        Raises `OutputError` when the disk has no room for it.
        """
        key = {"version": data_version(), "seed": seed, "count": count, "split": split, "size": size}
        shapes = {
            "pixels": (count, size, size, 3),
            "masks": (count, MAX_ACTORS, MASK_SIZE, MASK_SIZE),
            "drawn": (count,),
        }
        about = folder / "frames.json"
        if not about.is_file() or json.loads(about.read_text(encoding="utf-8")) != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            needed = sum(int(np.prod(shape)) for shape in shapes.values())
            if (free := shutil.disk_usage(folder).free) < needed + 2**28:
                raise OutputError(
                    f"`{folder}` has {free >> 20} MiB free, {count} frames need {needed >> 20} MiB",
                    hint="train with fewer: --set data.frames=4000",
                )
            for name, shape in shapes.items():
                np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.uint8, shape=shape)
            write_json(about, key)
        scenes = [corpus.scene_for(splits.story_seed(split, seed, index)) for index in range(count)]
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in shapes]
        return FrameSet(scenes, *arrays)

    def __len__(self) -> int:
        return len(self.scenes)

    def fill_all(self) -> None:
        """Draw every frame that is not there yet, on all cores."""
        missing = np.flatnonzero(self.drawn == 0)
        if not hasattr(os, "fork"):
            return self.fill(missing)
        fork = multiprocessing.get_context("fork")  # the files stay mapped in the processes
        parts = np.array_split(missing, spare_cores())
        processes = [fork.Process(target=self.fill, args=(part,)) for part in parts if len(part)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if failed := [process.exitcode for process in processes if process.exitcode]:
            raise RuntimeError(f"a process that drew frames ended with {failed[0]}")

    def fill(self, indices: npt.NDArray[np.int64]) -> None:
        """Draw those of the frames that are not there yet."""
        for index in indices[self.drawn[indices] == 0]:
            picture = draw.render(self.scenes[index], self.pixels.shape[1])
            self.pixels[index] = picture.image
            for actor, mask in enumerate(picture.masks[:MAX_ACTORS]):
                self.masks[index, actor] = resize(mask, MASK_SIZE)
            self.drawn[index] = 1

    def bytes(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Frames as (B,3,S,S) in 0..255, channels last in memory."""
        self.fill(indices)
        return torch.from_numpy(self.pixels[indices]).permute(0, 3, 1, 2)

    def pictures(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Frames as (B,3,S,S) in [-1,1], channels last in memory."""
        return as_pictures(self.bytes(indices))

    def actor_masks(self, indices: npt.NDArray[np.int64], size: int) -> Tensor:
        """What each actor covers, by area, in [0,1]: (B, MAX_ACTORS, size, size); `size` divides 128."""
        self.fill(indices)
        masks = torch.from_numpy(self.masks[indices]).float().div_(255)
        return torch.nn.functional.avg_pool2d(masks, MASK_SIZE // size)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """One wording of what the frame shows, every name and place spelled out."""
        return captions.original(self.scenes[index], random.Random(int(rng.integers(2**31))))

    def character(self, index: int, actor: int, size: int) -> Pixels | None:
        """One actor on white, cut out by its mask, padded to a square: (size, size, 3); None when hidden."""
        self.fill(np.array([index]))
        side = self.pixels.shape[1]
        mask = resize(self.masks[index, actor], side)
        rows, columns = np.flatnonzero(mask.max(1) > 127), np.flatnonzero(mask.max(0) > 127)
        if rows.size < side // 16 or columns.size < side // 16:
            return None
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        return on_white(self.pixels[index][box], mask[box], size)


def as_pictures(pixels: Tensor) -> Tensor:
    """Bytes of any shape as networks read them, in [-1,1]."""
    return pixels.float().div_(127.5).sub_(1)


def training_frames(config: TrainConfig, out: Path, device: str) -> FrameSet:
    """The frames that all stages of a checkpoint folder learn from.

    An accelerator would wait for every single one, so all are drawn before it begins.
    """
    size, count = config.model.image_size, config.data.frames
    frames = FrameSet.open_or_make(out / FRAMES, config.seed, count, "train", size)
    if device != "cpu":
        frames.fill_all()
    return frames


def data_version() -> str:
    """A short checksum of what the world draws and says: it changes when pictures or captions change."""
    digest = hashlib.sha256()
    for seed in range(64):
        digest.update(corpus.scene_caption(corpus.scene_for(seed)).encode())
    for seed in range(4):
        digest.update(draw.render(corpus.scene_for(seed), 64).image.tobytes())
    return digest.hexdigest()[:12]


def on_white(pixels: Pixels, mask: Pixels, size: int) -> Pixels:
    """A picture (h,w,3) blended onto white by its mask (h,w), padded and resized to (size,size,3)."""
    weight = mask[..., None].astype(np.uint16)
    blended = ((pixels * weight + 255 * (255 - weight)) // 255).astype(np.uint8)
    height, width = mask.shape
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = blended
    return resize(square, size)


def resize(pixels: Pixels, size: int) -> Pixels:
    """Scale a square picture (S,S[,3]) to (size,size[,3]): by area where it shrinks, as the runtime does."""
    if pixels.shape[0] == size:
        return pixels
    way = Image.Resampling.BOX if pixels.shape[0] > size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((size, size), way))
