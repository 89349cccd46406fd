"""Latents of training frames: encoded when first asked for, kept in a memory-mapped file of 16-bit floats.

A set belongs to one encoder and one set of frames; another one found in its place is replaced. A frame's
flag is set after its latents, so a kill leaves nothing to repair.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.modeling.checkpoints import write_json
from storyv_lite.train.data import FrameSet

TOGETHER = 64  # frames that an accelerator encodes at a time


@dataclass(frozen=True)
class LatentSet:
    """Normalised means of the autoencoder's posterior for every frame of `frames`."""

    frames: FrameSet
    autoencoder: ToonAutoencoder
    values: npt.NDArray[np.float16]  # (N, C, h, w)
    encoded: npt.NDArray[np.uint8]  # (N,)

    @staticmethod
    def open_or_make(
        folder: Path, frames: FrameSet, frames_folder: Path, autoencoder: ToonAutoencoder
    ) -> "LatentSet":
        """Open the set in `folder`, or begin it; a decoder that learned on changes nothing."""
        names = ("latents_mean", "latents_std", "scaling_factor")
        statistics = {name: autoencoder.config.get(name) for name in names}  # measured after the weights
        key = {
            "encoder": _sum(autoencoder),
            "statistics": json.loads(json.dumps(statistics)),
            "frames": json.loads((frames_folder / "frames.json").read_text(encoding="utf-8")),
        }
        about = folder / "latents.json"
        if not about.is_file() or json.loads(about.read_text(encoding="utf-8")) != key:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            side = frames.pixels.shape[1] // autoencoder.downscale
            shape = (len(frames), autoencoder.config.latent_channels, side, side)
            np.lib.format.open_memmap(folder / "values.npy", mode="w+", dtype=np.float16, shape=shape)
            np.lib.format.open_memmap(folder / "encoded.npy", mode="w+", dtype=np.uint8, shape=shape[:1])
            write_json(about, key)
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("values", "encoded")]
        return LatentSet(frames, autoencoder, *arrays)

    @torch.no_grad()
    def encode_all(self) -> None:
        """Encode every frame that is not yet, many at a time."""
        for chunk in np.array_split(np.arange(len(self.frames)), -(-len(self.frames) // TOGETHER)):
            if (missing := chunk[self.encoded[chunk] == 0]).size:
                self._encode(missing)

    @torch.no_grad()
    def __call__(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Latents (B, C, h, w) of the frames at `indices`."""
        for index in np.unique(indices[self.encoded[indices] == 0]):  # alone: the same bits in any company
            self._encode(index[None])
        return torch.from_numpy(self.values[indices]).float()

    def _encode(self, indices: npt.NDArray[np.int64]) -> None:
        device = self.autoencoder.device
        fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        pixels = self.frames.pictures(indices).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            mean = self.autoencoder.encode(pixels).latent_dist.mode()
        self.values[indices] = self.autoencoder.normalize(mean.float()).cpu().numpy()
        self.encoded[indices] = 1


def _sum(autoencoder: ToonAutoencoder) -> str:
    """SHA-256 of the weights that make latents of pictures."""
    digest = hashlib.sha256()
    for name, weight in sorted(autoencoder.state_dict().items()):
        if not name.startswith(("decoder.", "post_quant_conv.")):
            digest.update(name.encode() + weight.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
