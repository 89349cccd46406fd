"""Recipe: the judge, which measures what the model draws and takes no part in drawing it.

Learns from real frames of training seeds alone; some of them pass through the autoencoder or are softened,
lightened and made noisy, so that a drawn picture is not judged by its texture. Tested on real frames of test
seeds, which no network of this project ever learns from; the result goes to `checkpoint.json` and
`metrics.jsonl`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from storyv_lite.config import TrainConfig
from storyv_lite.modeling.autoencoder import Autoencoder
from storyv_lite.modeling.checkpoints import read_checkpoint, write_checkpoint
from storyv_lite.modeling.judge import CHUNK, Judge, Scores, Verdict, joined
from storyv_lite.train import autoencoder
from storyv_lite.train.data import training_frames
from storyv_lite.train.image_text import NAMES, disturbed, truths
from storyv_lite.train.loop import append_metrics, run_stage, step_rng
from storyv_lite.train.toonworld import corpus, draw, splits
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, POSITIONS, PROPS

STAGE = "judge"
LATENT_NOISE = 0.2  # of a channel's spread at most, for frames that pass through the autoencoder

Batch = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]  # pictures, their truths


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train the judge into `out/judge`; true when the stage is complete."""
    settings, count = config.judge, config.data.frames
    decoder = autoencoder.load(out, device)
    frames = training_frames(config, out, device)
    torch.manual_seed(config.seed)
    model = build(settings.image_size, settings.block_out_channels, settings.layers_per_block)
    decoded = round(settings.decoded_share * settings.train_batch_size)

    def batches(step: int) -> Batch:
        indices = step_rng(config.seed, STAGE, step).integers(count, size=settings.train_batch_size)
        return frames.pictures(indices), truths([frames.scenes[index] for index in indices])

    def compute_loss(batch: Batch, step: int) -> dict[str, Tensor]:
        pixels = batch[0].to(device)
        places, present, details = (tensor.to(device) for tensor in batch[1])
        pixels = torch.cat([through(decoder, pixels[:decoded], LATENT_NOISE), pixels[decoded:]])
        size = settings.image_size
        scores: Scores = model(disturbed(F.interpolate(pixels, size=(size, size), mode="area")))
        here = present > 0
        losses = {
            "places": F.cross_entropy(scores.places, places),
            "characters": F.binary_cross_entropy_with_logits(scores.present, present) * len(NAMES),
        }
        read = (scores.positions, scores.actions, scores.props)
        for detail, name in enumerate(("positions", "actions", "props")):
            losses[name] = F.cross_entropy(read[detail][here], details[..., detail][here])
        held = F.one_hot(details[..., 2], len(PROPS) + 1)[..., : len(PROPS)] * here[..., None]
        things = held.amax(1).float()
        losses["things"] = F.binary_cross_entropy_with_logits(scores.things, things) * len(PROPS)
        exact = ((scores.present > 0) == here).all(1).float().mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses, "exact": exact}

    def test() -> None:
        report = examine(model, decoder, config.seed, settings.test_frames, config.model.image_size)
        write_checkpoint(out, {**read_checkpoint(out), "judge": report})
        append_metrics(out, {"stage": STAGE, "test": report})

    return run_stage(
        STAGE,
        settings,
        {"judge": model},
        batches,
        compute_loss,
        out,
        seed=config.seed,
        device=device,
        minutes=minutes,
        finish=test,
    ).done


def build(image_size: int, block_out_channels: tuple[int, ...], layers_per_block: int) -> Judge:
    """A judge of the cartoon world that knows nothing yet."""
    words = (tuple(NAMES), PLACES, POSITIONS, ACTIONS, PROPS)
    judge: Judge = Judge(*words, image_size, block_out_channels, layers_per_block)
    return judge


@torch.no_grad()
def through(decoder: Autoencoder, pixels: Tensor, noise: float = 0.0) -> Tensor:
    """Pictures (B,3,S,S) as the autoencoder gives them back, their latents disturbed by up to `noise`."""
    if not len(pixels):
        return pixels
    latents = decoder.encode(pixels).latent_dist.mode()
    spread = latents.std(dim=(0, 2, 3), keepdim=True)
    share = noise * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    result: Tensor = decoder.decode(latents + share * spread * torch.randn_like(latents)).sample
    return result.float().clamp(-1, 1)


def examine(model: Judge, decoder: Autoencoder, seed: int, count: int, size: int) -> dict[str, Any]:
    """Accuracy in percent on `count` real frames of test seeds, and on the same through the autoencoder.

    `psnr`, in decibels, is the mean over those pictures of how near the autoencoder's are to the real ones.
    """
    scenes = [corpus.scene_for(splits.story_seed("test", seed, index)) for index in range(count)]
    device = next(decoder.parameters()).device
    real, passed, ratios = list[Verdict](), list[Verdict](), list[float]()
    for start in range(0, count, CHUNK):
        images = np.stack([draw.render(scene, size).image for scene in scenes[start : start + CHUNK]])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        decoded = through(decoder, pixels.to(device)).cpu().add(1).mul(127.5).round().byte()
        real.append(model.read(images))
        passed.append(model.read(decoded.permute(0, 2, 3, 1).numpy()))
        squared = (decoded.permute(0, 2, 3, 1).float() - torch.from_numpy(images)).square().mean((1, 2, 3))
        ratios += (10 * torch.log10(255**2 / squared.clamp(min=1e-9))).tolist()
    truth = truths(scenes)
    back = {**accuracy(joined(passed), *truth), "psnr": round(float(np.mean(ratios)), 2)}
    return {"frames": count, "real": accuracy(joined(real), *truth), "autoencoder": back}


def accuracy(verdict: Verdict, places: Tensor, present: Tensor, details: Tensor) -> dict[str, float]:
    """Percent of frames whose characters are all right, whose place is, and of characters' details."""
    here = present.numpy() > 0
    right: dict[str, npt.NDArray[np.bool_]] = {
        "characters": (verdict.present == here).all(1),
        "places": (verdict.places == (np.arange(len(PLACES)) == places.numpy()[:, None])).all(1),
    }
    read = (verdict.positions, verdict.actions, verdict.props)
    for detail, name in enumerate(("positions", "actions", "props")):
        right[name] = (read[detail] == details[..., detail].numpy())[here]
    return {name: round(100 * float(values.mean()), 2) for name, values in right.items()}
