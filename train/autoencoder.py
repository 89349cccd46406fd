"""Recipe: the toon autoencoder. Pictures in, the same pictures out, through a 12x16x16 bottleneck.

For three quarters of the steps encoder and decoder learn together; then the encoder rests and the decoder
learns to forgive the small errors a denoiser makes. At the end the latents' mean and spread are measured and
stored in the component's configuration, where every later stage finds them.
Training can go on beside everything that was built on the latents: the decoder alone with more steps and
`--set autoencoder.encoder_ratio=0`, both with `--set autoencoder.latents_of=CHECKPOINT`, where the encoder
keeps close to the latents of that checkpoint.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storyv_lite.checkpoint import train_command
from storyv_lite.config import TrainConfig
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.modeling.autoencoder import Autoencoder, PretrainedAutoencoder, ToonAutoencoder
from storyv_lite.modeling.checkpoints import has_component, load_component, save_component, stage_record
from storyv_lite.modeling.published import from_pretrained
from storyv_lite.train.data import FrameSet, as_pictures, training_frames
from storyv_lite.train.loop import run_stage, step_rng

STAGE = "autoencoder"
LATENT_NOISE = 0.1  # of a channel's spread, added in front of the decoder in the rest of the steps
MEASURED_FRAMES = 2000
KEEPING = 0.2  # weight of the squared distance to the latents that are to be kept


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train the autoencoder into `out/autoencoder`; true when the stage is complete."""
    settings, shape = config.autoencoder, config.model.autoencoder
    if shape.pretrained:
        published = from_pretrained(
            PretrainedAutoencoder, shape.pretrained, "model.autoencoder.pretrained", subfolder="vae"
        )
        save_component(published, out / "autoencoder")
        return True
    torch.manual_seed(config.seed)
    model = ToonAutoencoder(
        latent_channels=shape.latent_channels,
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        patch_size=shape.patch_size,
        scale_factor=config.model.image_size // config.model.unet.sample_size,
    )
    size, count = config.model.image_size, config.data.frames
    frames = training_frames(config, out, device)
    shown = FrameSet.open_or_make(out / "state" / "frames-shown", config.seed, 16, "validation", size)
    encoder_steps = int(settings.encoder_ratio * settings.max_train_steps)
    kept = _kept(Path(settings.latents_of), out, device) if settings.latents_of else None
    rests = encoder_steps <= stage_record(out, STAGE).get("steps", 0) and has_component(out / "autoencoder")
    if kept is not None or rests:  # what other stages were trained with
        old = (kept or load(out)).config
        model.register_to_config(latents_mean=old.latents_mean, latents_std=old.latents_std)

    def batches(step: int) -> tuple[Tensor, Tensor]:
        indices = step_rng(config.seed, STAGE, step).integers(count, size=settings.train_batch_size)
        masks = frames.actor_masks(indices, 64).sum(1, keepdim=True).clamp(max=1)
        return frames.bytes(indices), masks

    def compute_loss(batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        pixels, masks = (tensor.to(device) for tensor in batch)
        pixels = as_pictures(pixels)
        learns = step < encoder_steps
        with torch.set_grad_enabled(learns):
            posterior = model.encode(pixels).latent_dist
            latents = posterior.sample()
        if not learns:
            spread = latents.std(dim=(0, 2, 3), keepdim=True)
            latents = latents + LATENT_NOISE * spread * torch.randn_like(latents)
        error = model.decode(latents).sample.float() - pixels
        weight = 1 + settings.character_weight * torch.nn.functional.interpolate(masks, size=error.shape[-1])
        squared = error.square()
        across = (error[..., 1:] - error[..., :-1]).abs().mean()
        down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        kl = posterior.kl().mean() / latents[0].numel()
        reconstruction = (weight * error.abs()).mean() + (weight * squared).mean()
        loss = reconstruction + settings.gradient_weight * (across + down) + settings.kl_weight * kl
        losses = {"psnr": -10 * torch.log10(squared.detach().mean() / 4), "kl": kl}
        if learns and kept is not None:
            losses["moved"] = moved(kept, pixels, posterior.mode())
            loss = loss + KEEPING * losses["moved"]
        return {"loss": loss, **losses}

    def sample(path: Path) -> None:
        pixels = shown.pictures(np.arange(len(shown))).to(device)
        _sheet(pixels, model.decode(model.encode(pixels).latent_dist.mode()).sample, path)

    def measure() -> None:
        if model.config.latents_mean is None:
            _measure(model, frames, device, min(MEASURED_FRAMES, count))

    return run_stage(
        STAGE,
        settings,
        {"autoencoder": model},
        batches,
        compute_loss,
        out,
        seed=config.seed,
        device=device,
        minutes=minutes,
        sample=sample,
        finish=measure,
        phase=lambda step: step < encoder_steps,
    ).done


def load(out: Path, device: str = "cpu") -> Autoencoder:
    """The trained autoencoder of a checkpoint folder, frozen, for the stages that come after it."""
    model = load_component(out / "autoencoder")
    if not isinstance(model, ToonAutoencoder | PretrainedAutoencoder):
        raise BundleError(f"`{out / 'autoencoder'}` holds `{type(model).__name__}`, no autoencoder")
    frozen: Autoencoder = model.requires_grad_(False).to(device)
    return frozen


def refuse_unmeasured(model: Autoencoder, folder: Path) -> None:
    """Raise `BundleError` for one of ours that has not learned to its end; published ones tell one factor."""
    if isinstance(model, ToonAutoencoder) and model.config.latents_mean is None:
        raise BundleError(
            f"`{folder / 'autoencoder'}` is not finished: its latents are not measured yet",
            hint=train_command(folder, STAGE),
        )


def moved(kept: Autoencoder, pixels: Tensor, latents: Tensor) -> Tensor:
    """Mean squared distance of latents to those that `kept` gives of the pictures (B,3,S,S), normalised."""
    with torch.no_grad():
        old = kept.normalize(kept.encode(pixels).latent_dist.mode().float())
    return (kept.normalize(latents.float()) - old).square().mean()


def _kept(folder: Path, out: Path, device: str) -> Autoencoder:
    if folder.resolve() == out.resolve():
        raise ConfigError(
            f"`autoencoder.latents_of` is `{folder}`, the folder that is trained in; another one is needed",
            hint=f"cp -r {folder} {folder}-before",
        )
    if not has_component(folder / "autoencoder"):
        raise BundleError(f"`{folder}` of `autoencoder.latents_of` holds no `autoencoder`")
    kept = load(folder, device)
    refuse_unmeasured(kept, folder)
    return kept


@torch.no_grad()
def _measure(model: ToonAutoencoder, frames: FrameSet, device: str, count: int) -> None:
    """Store mean and spread of every latent channel over `count` frames in the model's configuration."""
    total = torch.zeros(2, model.config.latent_channels, dtype=torch.float64)
    for chunk in np.array_split(np.arange(count), -(-count // 16)):
        latents = model.encode(frames.pictures(chunk).to(device)).latent_dist.mode().double().cpu()
        moments = torch.stack([latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))])
        total += moments * len(chunk) / count
    mean, std = total[0], (total[1] - total[0].square()).clamp(min=1e-8).sqrt()
    model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def _sheet(originals: Tensor, decoded: Tensor, path: Path) -> None:
    """Rows of originals with what came back below each."""
    pairs = torch.stack([originals.cpu(), decoded.float().cpu().clamp(-1, 1)], dim=1)
    rows = [row.reshape(-1, *row.shape[2:]) for row in torch.split(pairs, 8)]
    strips = [torch.cat([torch.cat(list(row[0::2]), -1), torch.cat(list(row[1::2]), -1)], -2) for row in rows]
    picture = torch.cat(strips, -2).add(1).mul(127.5).round().byte()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
