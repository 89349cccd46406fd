"""The noise schedule of training, as diffusers' DDPMScheduler: what the denoiser must predict, and how much
each step of the schedule counts. Sampling is the runtime's.
"""

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from storyv_lite.config import UNetConfig
from storyv_lite.errors import ConfigError
from storyv_lite.modeling.published import from_pretrained


def build_scheduler(config: UNetConfig) -> DDPMScheduler:
    """The schedule of a pretrained denoiser, or the one the configuration describes."""
    if config.pretrained:
        return from_pretrained(
            DDPMScheduler, config.pretrained, "model.unet.pretrained", subfolder="scheduler"
        )
    return DDPMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",  # begins at pure noise, as training does
        clip_sample=False,
    )


def training_target(scheduler: DDPMScheduler, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should answer for latents (B,C,h,w) with noise of `timesteps` (B,).

    Raises `ConfigError` for a published schedule that asks for anything but the noise or the velocity.
    """
    if (asked := scheduler.config.prediction_type) == "epsilon":
        return noise
    if asked != "v_prediction":
        raise ConfigError(
            f"`prediction_type` of the scheduler is `{asked}`; epsilon or v_prediction is needed",
            hint="name another model: --set model.unet.pretrained=FOLDER",
        )
    velocity: Tensor = scheduler.get_velocity(latents, noise, timesteps)
    return velocity


def snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, snr_gamma: float) -> Tensor:
    """Loss weight per sample (B,): min(SNR, gamma) in the units of the prediction (Hang et al., 2023).

    For velocities it is min(SNR, gamma) + 1, the velocity's own weight (Salimans & Ho, 2022) with a cap:
    min-SNR itself hardly counts the noisiest steps, where a caption decides who is in the picture.
    """
    kept: Tensor = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr: Tensor = kept / (1 - kept)
    if scheduler.config.prediction_type == "v_prediction":
        return (snr.clamp(max=snr_gamma) + 1) / (snr + 1)
    return snr.clamp(max=snr_gamma) / snr.clamp(min=1e-8)


def spread_timesteps(
    scheduler: DDPMScheduler, batch_size: int, shift: float = 1.0, device: torch.device | str = "cpu"
) -> Tensor:
    """Random timesteps (B,), one from each of B equally likely parts of the schedule: with less variance.

    Uniform at a `shift` of 1; above it noisier steps are likelier, by that factor at the noisiest
    (t = shift u / (1 + (shift - 1) u) for a uniform u: Esser et al., 2024).
    """
    steps = int(scheduler.config.num_train_timesteps)
    places = torch.arange(batch_size, device=device)
    parts = (places + torch.rand(batch_size, device=device)) / batch_size
    return (shift * parts / (1 + (shift - 1) * parts) * steps).long().clamp(max=steps - 1)
