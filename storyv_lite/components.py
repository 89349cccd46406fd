"""The components of a story model and the signature of each: names, types and axes of what goes in and out.

`export` checks its graphs against this table and `runtime` feeds them by it, so the two cannot disagree.
Axes are names; `Dimensions` turns the fixed ones into numbers, free ones stay symbolic. Knows no framework.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum


class Component(StrEnum):
    """Every part of a story model that is exported by itself."""

    TEXT_ENCODER = "text_encoder"
    CHARACTER_ENCODER = "character_encoder"
    FUSION = "fusion"
    TOKEN_EMBEDDING = "token_embedding"
    VISION_ENCODER = "vision_encoder"
    LANGUAGE_MODEL = "language_model"
    MAPPER = "mapper"
    UNET = "unet"
    VAE_DECODER = "vae_decoder"


ALIASES = {"llm": Component.LANGUAGE_MODEL, "vae": Component.VAE_DECODER}


@dataclass(frozen=True)
class Dimensions:
    """The numbers that fix a model's shapes; stored in the checkpoint and in the bundle's manifest."""

    image_size: int  # pixels, height = width
    latent_channels: int
    latent_size: int  # latents are (latent_channels, latent_size, latent_size)
    text_tokens: int  # positions the text encoder reads
    cross_attention_dim: int  # width of the conditioning
    vision_image_size: int  # pixels the vision and character encoders read
    vocab_size: int  # rows of the language model's token table, [IMG] rows included
    hidden_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int  # context limit of the language model, in tokens
    image_tokens: int  # [IMG0]..[IMGr-1]
    visual_tokens: int  # tokens one picture becomes

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, numpy type name, axes (numbers or names)."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]


@dataclass(frozen=True)
class Signature:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature(component: Component, dims: Dimensions) -> Signature:
    """The signature of one component for a model of these dimensions.

    `token_embedding` is a table, not a graph: its only output is the array itself.
    """
    d = dims
    pixels = TensorSpec("pixel_values", "float32", ("batch", 3, d.vision_image_size, d.vision_image_size))
    text_states = TensorSpec("hidden_states", "float32", ("batch", d.text_tokens, d.cross_attention_dim))
    latents = ("batch", d.latent_channels, d.latent_size, d.latent_size)
    conditioning = TensorSpec(
        "encoder_hidden_states", "float32", ("batch", d.text_tokens, d.cross_attention_dim)
    )
    match component:
        case Component.TEXT_ENCODER:
            ids = TensorSpec("input_ids", "int64", ("batch", d.text_tokens))
            return Signature((ids,), (text_states,))
        case Component.CHARACTER_ENCODER:
            embeds = TensorSpec("image_embeds", "float32", ("batch", d.cross_attention_dim))
            return Signature((pixels,), (embeds,))
        case Component.FUSION:
            states = TensorSpec("hidden_states", "float32", (1, d.text_tokens, d.cross_attention_dim))
            embeds = TensorSpec("image_embeds", "float32", ("characters", d.cross_attention_dim))
            positions = TensorSpec("positions", "int64", ("characters",))
            fused = TensorSpec("fused_states", "float32", (1, d.text_tokens, d.cross_attention_dim))
            return Signature((states, embeds, positions), (fused,))
        case Component.TOKEN_EMBEDDING:
            return Signature((), (TensorSpec("weight", "float16", (d.vocab_size, d.hidden_size)),))
        case Component.VISION_ENCODER:
            tokens = TensorSpec("visual_tokens", "float32", ("batch", d.visual_tokens, d.hidden_size))
            return Signature((pixels,), (tokens,))
        case Component.LANGUAGE_MODEL:
            return _language_model(d)
        case Component.MAPPER:
            states = TensorSpec("image_states", "float32", ("batch", d.image_tokens, d.hidden_size))
            return Signature((states,), (conditioning,))
        case Component.UNET:
            sample = TensorSpec("sample", "float32", latents)
            timestep = TensorSpec("timestep", "int64", (1,))
            return Signature(
                (sample, timestep, conditioning), (TensorSpec("out_sample", "float32", latents),)
            )
        case Component.VAE_DECODER:
            sample = TensorSpec("latents", "float32", latents)
            image = TensorSpec("image", "float32", ("batch", 3, d.image_size, d.image_size))
            return Signature((sample,), (image,))


def _language_model(d: Dimensions) -> Signature:
    inputs = [
        TensorSpec("inputs_embeds", "float32", (1, "sequence", d.hidden_size)),
        TensorSpec("attention_mask", "int64", (1, "total")),
    ]
    outputs = [TensorSpec("last_hidden_state", "float32", (1, "sequence", d.hidden_size))]
    for layer in range(d.num_hidden_layers):
        for part in ("key", "value"):
            past = (1, d.num_key_value_heads, "past", d.head_dim)
            present = (1, d.num_key_value_heads, "total", d.head_dim)
            inputs.append(TensorSpec(f"past_key_values.{layer}.{part}", "float32", past))
            outputs.append(TensorSpec(f"present.{layer}.{part}", "float32", present))
    return Signature(tuple(inputs), tuple(outputs))
