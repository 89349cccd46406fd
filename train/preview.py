"""Sample sheets while the denoiser learns: fixed captions, DDIM in twenty steps with guidance.

Not the way pictures are made for users (the runtime has that); it only has to show how far training is.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image, ImageDraw
from torch import Tensor, nn

from storyv_lite.config import TrainConfig
from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.runtime.tokenizer import TextTokenizer
from storyv_lite.train.conditioning import Conditioner, Pixels, with_portraits

CAPTIONS = (
    "Milo is jumping in the meadow with a balloon.",
    "Luna is sitting on the beach and holding a book.",
    "Bruno is running in the snow.",
    "Olive is sleeping in the bedroom.",
    "Zara is standing in the kitchen with a cake.",
    "Otto is waving on the moonlit hill under an umbrella.",
    "Milo and Luna are jumping in the forest.",
    "In town Rex is running and Kiki is sitting.",
    "Kiki gives a flower to Bruno in the meadow.",
    "On the left, Otto is waving, and on the right, Zara is sleeping on the beach.",
    "Olive is standing next to Rex in the kitchen.",
    "Luna is holding an umbrella and Otto is holding a ball in the snow.",
)
STEPS, GUIDANCE = 20, 3.0
COLUMNS, MARGIN = 4, 34  # pictures side by side; pixels for the caption below each


def draw_sheet(
    captions: Sequence[str],
    portraits: Mapping[str, Pixels],
    conditioner: Conditioner,
    unet: nn.Module,
    autoencoder: ToonAutoencoder,
    tokenizer: TextTokenizer,
    scheduler: DDPMScheduler,
    config: TrainConfig,
    path: Path,
) -> None:
    """Draw every caption from the same noise as last time and save them as one picture."""
    device, shape = autoencoder.device, config.model
    batch = [tokenizer.encode(caption, portraits) for caption in ["", *captions]]
    states = conditioner(with_portraits(batch, portraits).to(device))
    noise = torch.randn(
        (len(captions), shape.autoencoder.latent_channels, shape.unet.sample_size, shape.unet.sample_size),
        generator=torch.Generator().manual_seed(config.seed),
    ).to(device)
    latents = sample(unet, scheduler, noise, states[1:], states[:1])
    decoded = [autoencoder.decode(autoencoder.denormalize(one)).sample for one in torch.split(latents, 4)]
    save_sheet(torch.cat(decoded).float().cpu(), captions, path)


@torch.no_grad()
def sample(
    unet: nn.Module, scheduler: DDPMScheduler, noise: Tensor, conditioning: Tensor, empty: Tensor
) -> Tensor:
    """Latents of `noise`'s shape (B,C,h,w) for conditioning (B,T,D), guided away from `empty` (1,T,D)."""
    ddim = DDIMScheduler.from_config(
        {**scheduler.config, "clip_sample": False, "timestep_spacing": "trailing"}
    )
    ddim.set_timesteps(STEPS)
    both = torch.cat([empty.expand_as(conditioning), conditioning])
    latents = noise
    for timestep in ddim.timesteps:
        times = timestep.expand(len(both)).to(noise.device)
        without, guided = unet(torch.cat([latents, latents]), times, both).sample.float().chunk(2)
        latents = ddim.step(without + GUIDANCE * (guided - without), timestep, latents).prev_sample
    return latents


def save_sheet(pictures: Tensor, captions: Sequence[str], path: Path) -> None:
    """Pictures (B,3,S,S) in about [-1,1] on a grid, each with its caption below."""
    size = pictures.shape[-1]
    rows = -(-len(captions) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * size, rows * (size + MARGIN)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = index % COLUMNS * size, index // COLUMNS * (size + MARGIN)
        pixels = picture.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, top))
        pen.text((left + 3, top + size + 2), textwrap.fill(caption, size // 6), fill="black", spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
