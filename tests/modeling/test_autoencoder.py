"""The toon autoencoder: shapes, normalisation, and that a few steps make it better."""

from pathlib import Path

import pytest
import torch

from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import BundleError
from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.modeling.checkpoints import read_checkpoint
from storyv_lite.modeling.components import build


def tiny(**changes: object) -> ToonAutoencoder:
    shape = {
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": (1, 1),
        "patch_size": 4,
    }
    torch.manual_seed(0)
    model: ToonAutoencoder = ToonAutoencoder(**{**shape, "scale_factor": 8, **changes})
    return model


def test_the_default_turns_256_pixels_into_12x16x16_and_back() -> None:
    model = ToonAutoencoder()
    with torch.no_grad():
        latents = model.encode(torch.zeros(1, 3, 256, 256)).latent_dist.mode()
        assert latents.shape == (1, 12, 16, 16)
        assert model.decode(latents).sample.shape == (1, 3, 256, 256)


def test_every_level_may_be_left_out() -> None:
    for widths, patch in (((32,), 8), ((32, 32), 8), ((32, 32), 4), ((32, 32, 32, 32), 1)):
        model = tiny(block_out_channels=widths, layers_per_block=(1,) * len(widths), patch_size=patch)
        latents = model.encode(torch.zeros(2, 3, 32, 32)).latent_dist.mode()
        assert latents.shape == (2, 4, 4, 4)
        assert model.decode(latents).sample.shape == (2, 3, 32, 32)


def test_normalize_and_denormalize_are_inverse_and_use_the_stored_statistics() -> None:
    model = tiny(latents_mean=(1.0, 2.0, 3.0, 4.0), latents_std=(0.5, 1.0, 2.0, 4.0))
    latents = torch.randn(2, 4, 3, 3)
    normal = model.normalize(latents)
    assert torch.allclose(normal[:, 2], (latents[:, 2] - 3) / 2)
    assert torch.allclose(model.denormalize(normal), latents, atol=1e-6)


def test_without_statistics_normalisation_changes_nothing() -> None:
    latents = torch.randn(1, 4, 2, 2)
    assert torch.equal(tiny().normalize(latents), latents)


def test_a_few_steps_make_the_reconstruction_better() -> None:
    model = tiny()
    pixels = torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32) * 2 - 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors = []
    for _ in range(80):
        error = (model.decode(model.encode(pixels).latent_dist.mode()).sample - pixels).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.3 * errors[0]


def test_a_decoder_whose_latents_are_not_measured_yet_is_refused(tiny_checkpoint: Path) -> None:
    dims = Dimensions(**read_checkpoint(tiny_checkpoint)["dimensions"])
    with pytest.raises(BundleError, match="not measured yet"):
        build(Component.VAE_DECODER, tiny_checkpoint, dims, load=lambda _: tiny())
