"""Components as modules: each with exactly the inputs and outputs of the signature table.

`export` traces them, the PyTorch backend runs them. Knows where each weight of a checkpoint goes and what is
folded in (normalisation of pixels and latents, the [IMG] rows), not how weights are stored or quantized.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from storyv_lite.checkpoint import train_command
from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import BundleError
from storyv_lite.modeling.checkpoints import load_component
from storyv_lite.modeling.loading import token_table

Load = Callable[[Path], nn.Module]


class TextEncoder(nn.Module):
    """`input_ids` to the states after the final layer norm."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        states: Tensor = self.text_encoder(input_ids=input_ids).last_hidden_state
        return states


class CharacterEncoder(nn.Module):
    """Pixels in [0, 1] to projected picture vectors, not normalised to length one (specification A.3)."""

    def __init__(self, encoder: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder, self.mean, self.std = encoder, mean, std

    def forward(self, pixel_values: Tensor) -> Tensor:
        embeds: Tensor = self.encoder(pixel_values=(pixel_values - self.mean) / self.std).image_embeds
        return embeds


class VisionEncoder(nn.Module):
    """Pixels in [0, 1] to the visual tokens that the language model reads."""

    def __init__(self, encoder: Any, projection: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder, self.projection, self.mean, self.std = encoder.vision_model, projection, mean, std

    def forward(self, pixel_values: Tensor) -> Tensor:
        pooled = self.encoder(pixel_values=(pixel_values - self.mean) / self.std).pooler_output
        tokens: Tensor = self.projection(pooled)
        return tokens


class FusionOfOne(nn.Module):
    """The fusion of one caption: every character belongs to batch row 0."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, hidden_states: Tensor, image_embeds: Tensor, positions: Tensor) -> Tensor:
        fused: Tensor = self.fusion(hidden_states, image_embeds, torch.zeros_like(positions), positions)
        return fused


class LanguageModel(nn.Module):
    """The backbone with its cache as plain tensors, in the order of the signature table."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.config = language_model.config
        self.backbone = language_model.base_model

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache(config=self.config)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        output = self.backbone(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, cache=cache, use_cache=True
        )
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return output.last_hidden_state, *present


class MapperWithRows(nn.Module):
    """States of the [IMG] tokens to conditioning; the [IMG] rows of the token table are a constant inside."""

    def __init__(self, mapper: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.mapper, self.rows = mapper, rows

    def forward(self, image_states: Tensor) -> Tensor:
        conditioning: Tensor = self.mapper(image_states + self.rows)
        return conditioning


class UNet(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class VaeDecoder(nn.Module):
    """Normalised latents to pictures in [0, 1]."""

    def __init__(self, autoencoder: Any, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        # Only the decoding half, so that the encoder is neither traced nor stored.
        self.autoencoder, self.mean, self.std = autoencoder, mean, std

    def forward(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.autoencoder.decode(latents * self.std + self.mean).sample
        return (decoded * 0.5 + 0.5).clamp(0.0, 1.0)


def build(component: Component, checkpoint: Path, dims: Dimensions, load: Load = load_component) -> nn.Module:
    """The module of one component in evaluation mode, its parts read from the checkpoint's folders by `load`.

    Raises `BundleError` when a part of the checkpoint is missing or damaged.
    """
    match component:
        case Component.TEXT_ENCODER:
            module: nn.Module = TextEncoder(load(checkpoint / "text_encoder"))
        case Component.CHARACTER_ENCODER:
            encoder = load(checkpoint / "character_encoder")
            module = CharacterEncoder(encoder, *_pixel_statistics(checkpoint / "character_encoder", encoder))
        case Component.VISION_ENCODER:
            encoder, projection = load(checkpoint / "vision_encoder"), load(checkpoint / "visual_projection")
            statistics = _pixel_statistics(checkpoint / "vision_encoder", encoder)
            module = VisionEncoder(encoder, projection, *statistics)
        case Component.FUSION:
            module = FusionOfOne(load(checkpoint / "fusion"))
        case Component.LANGUAGE_MODEL:
            module = LanguageModel(load(checkpoint / "language_model"))
        case Component.MAPPER:
            mapper = load(checkpoint / "mapper")
            rows = token_table(checkpoint / "language_model")[-dims.image_tokens :].clone()
            module = MapperWithRows(mapper, _like(mapper, rows))
        case Component.UNET:
            module = UNet(load(checkpoint / "unet"))
        case Component.VAE_DECODER:
            autoencoder: Any = load(checkpoint / "autoencoder")
            statistics = _latent_statistics(checkpoint / "autoencoder", autoencoder, dims)
            module = VaeDecoder(autoencoder, *statistics)
        case Component.TOKEN_EMBEDDING:
            raise AssertionError("the token embedding is a table, not a module")
    return module.requires_grad_(False).eval()


def _like(module: nn.Module, tensor: Tensor) -> Tensor:
    """`tensor` where the weights of `module` are, in their type."""
    weight = next(module.parameters())
    return tensor.to(weight.device, weight.dtype)


def _pixel_statistics(folder: Path, encoder: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation (3, 1, 1) that normalise pixels in [0, 1]; 0.5 and 0.5 unless the folder says."""
    file = folder / "preprocessor_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    mean, std = content.get("image_mean", [0.5] * 3), content.get("image_std", [0.5] * 3)
    return _like(encoder, torch.tensor(mean).view(3, 1, 1)), _like(encoder, torch.tensor(std).view(3, 1, 1))


def _latent_statistics(folder: Path, autoencoder: Any, dims: Dimensions) -> tuple[Tensor, Tensor]:
    """Mean and deviation (C, 1, 1) of the autoencoder's latents, per channel or as one scaling factor.

    Raises `BundleError` when there is neither.
    """
    channels, config = dims.latent_channels, autoencoder.config
    if config.get("latents_mean") is not None:
        mean, std = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
    elif config.get("scaling_factor"):
        mean = torch.full((channels,), float(config.get("shift_factor") or 0.0))
        std = torch.full((channels,), 1.0 / float(config["scaling_factor"]))
    else:
        raise BundleError(
            f"`{folder}` is not finished: its latents are not measured yet",
            hint=train_command(folder.parent, "autoencoder"),
        )
    shape = (channels, 1, 1)
    return _like(autoencoder, mean.view(shape)), _like(autoencoder, std.view(shape))
