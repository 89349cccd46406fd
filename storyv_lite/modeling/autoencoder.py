"""The toon autoencoder: 256x256 pictures to 12x16x16 latents and back, cheap enough for a CPU.

The one network that is not a library class: diffusers' autoencoders spend most of their time in convolutions
at full resolution. Here the encoder first folds 8x8 pixels into channels and the decoder ends by unfolding
them. No normalisation layers: the residual branches begin at zero, and flat colours stay flat.
Has the surface of diffusers' AutoencoderKL (`encode().latent_dist`, `decode().sample`).
"""

import torch
from diffusers import AutoencoderKL
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions added to their input; the identity at first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.conv2.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_states: Tensor) -> Tensor:
        silu = nn.functional.silu
        result: Tensor = hidden_states + self.conv2(silu(self.conv1(silu(hidden_states))))
        return result


class ToonAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A convolutional variational autoencoder.

    `block_out_channels` are the decoder's widths from the latent grid upwards, each level twice as large as
    the one before; the last level unfolds what is left of `scale_factor`. The encoder uses the widths of its
    own levels, from `patch_size` down to the latent grid. `latents_mean` and `latents_std` are measured after
    training: normalised latents are (z - mean) / std, and neither `encode` nor `decode` applies them.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (160, 128, 64),
        layers_per_block: tuple[int, ...] = (3, 2, 2),
        patch_size: int = 8,
        scale_factor: int = 16,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        widths, last = block_out_channels, scale_factor // 2 ** (len(block_out_channels) - 1)
        levels = (scale_factor // patch_size).bit_length() - 1  # encoder levels above the latent grid
        encoder: list[nn.Module] = [
            nn.PixelUnshuffle(patch_size),
            nn.Conv2d(3 * patch_size**2, widths[levels], 3, padding=1),
        ]
        for level in range(levels, -1, -1):
            encoder += [ResidualBlock(widths[level]) for _ in range(layers_per_block[level])]
            if level:
                encoder += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[level], widths[level - 1], 1)]
        encoder += [nn.SiLU(), nn.Conv2d(widths[0], 2 * latent_channels, 3, padding=1)]
        decoder: list[nn.Module] = [nn.Conv2d(latent_channels, widths[0], 3, padding=1)]
        for level, width in enumerate(widths):
            decoder += [ResidualBlock(width) for _ in range(layers_per_block[level])]
            if level + 1 < len(widths):
                decoder += [nn.Conv2d(width, 4 * widths[level + 1], 1), nn.PixelShuffle(2)]
        decoder += [nn.SiLU(), nn.Conv2d(widths[-1], 3 * last**2, 3, padding=1), nn.PixelShuffle(last)]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder)
        self.to(memory_format=torch.channels_last)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Pictures (B,3,S,S) in [-1,1] to a Gaussian over latents (B,C,S/16,S/16)."""
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(self.encoder(x).float()))

    def decode(self, z: Tensor) -> DecoderOutput:
        """Latents (B,C,S/16,S/16) as `encode` gives them to pictures (B,3,S,S), about [-1,1], not clamped."""
        return DecoderOutput(sample=self.decoder(z))

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along one side."""
        return int(self.config.scale_factor)

    def normalize(self, z: Tensor) -> Tensor:
        """Latents to zero mean and unit variance per channel, as the denoiser reads them."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._statistics(z)
        return z * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        channels = self.config.latent_channels
        mean = like.new_tensor(self.config.latents_mean or [0.0] * channels)
        std = like.new_tensor(self.config.latents_std or [1.0] * channels)
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


class PretrainedAutoencoder(AutoencoderKL):  # type: ignore[misc]
    """A published AutoencoderKL, whose latents are normalised by one number, in the words of ours."""

    @property
    def downscale(self) -> int:
        return 1 << (len(self.config.block_out_channels) - 1)

    def normalize(self, z: Tensor) -> Tensor:
        return z * float(self.config.scaling_factor)

    def denormalize(self, z: Tensor) -> Tensor:
        return z / float(self.config.scaling_factor)


Autoencoder = ToonAutoencoder | PretrainedAutoencoder
