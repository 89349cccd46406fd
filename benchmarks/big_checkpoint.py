"""A whole story model of a real size with random weights: Llama 2 7B's shape around Stable Diffusion 1.5's.

Knows the shapes of every component and what else a checkpoint holds; cast, tokenizers and vocabulary are
those of the model that ships. Weights are written file by file, one tensor in memory at a time.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.big_language import INTO_RESIDUAL, MODELS
from storyv_lite.benchmarks.big_unet import CONFIG as UNET
from storyv_lite.benchmarks.shapes import write_random
from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.components import Dimensions

HEAD = 128  # width of the language model's heads
SAMPLER = {
    "name": "ddim",
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "timestep_spacing": "leading",
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
CONTEXT_FRAMES = 24
IMAGE_TOKENS = 8


@dataclass(frozen=True)
class Size:
    """How much of the true model: all of it, or fewer layers and `narrow` times less wide."""

    layers: int = 32
    narrow: int = 1

    def width(self, full: int, step: int = 64) -> int:
        """A width of the model in whole `step`s."""
        return max(step, full // self.narrow // step * step)

    def depth(self, full: int) -> int:
        """Of what is beside the language model: as published, or one layer."""
        return full if self.narrow == 1 else 1

    @property
    def latents(self) -> int:
        """Cells per side."""
        return max(16, 64 // self.narrow)


def add_size(parser: argparse.ArgumentParser) -> None:
    """The options of a command that `chosen_size` reads."""
    parser.add_argument("--layers", type=int, default=Size.layers, help="of the language model [%(default)s]")
    parser.add_argument(
        "--narrow",
        type=int,
        default=Size.narrow,
        help="so many times less wide, for a first try [%(default)s]",
    )


def chosen_size(given: argparse.Namespace) -> Size:
    return Size(given.layers, given.narrow)


def dimensions(size: Size) -> Dimensions:
    """Shapes of the whole model at this size."""
    hidden = size.width(4096, HEAD)
    return Dimensions(
        image_size=8 * size.latents,
        latent_channels=4,
        latent_size=size.latents,
        text_tokens=77,
        cross_attention_dim=size.width(768),
        vision_image_size=224,
        vocab_size=32000 // size.narrow + IMAGE_TOKENS,
        hidden_size=hidden,
        num_hidden_layers=size.layers,
        num_key_value_heads=hidden // HEAD,
        head_dim=HEAD,
        max_position_embeddings=4096,
        image_tokens=IMAGE_TOKENS,
        visual_tokens=4,
    )


def configs(size: Size) -> dict[str, dict[str, Any]]:
    """`config.json` of every folder."""
    dims, text, vision = dimensions(size), size.width(768), size.width(1024)
    mapper = size.width(512)
    transformer = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": text}
    seeing = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": vision,
        "intermediate_size": 4 * vision,
        "num_hidden_layers": size.depth(24),
        "num_attention_heads": vision // 64,
        "image_size": dims.vision_image_size,
        "patch_size": 14,
        **transformer,
    }
    return {
        "text_encoder": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": text,
            "intermediate_size": 4 * text,
            "num_hidden_layers": size.depth(12),
            "num_attention_heads": text // 64,
            "max_position_embeddings": dims.text_tokens,
            **transformer,
        },
        "vision_encoder": seeing,
        "character_encoder": seeing,
        "visual_projection": {
            "_class_name": "VisualProjection",
            "vision_hidden_size": vision,
            "visual_tokens": dims.visual_tokens,
            "hidden_size": dims.hidden_size,
        },
        "fusion": {"_class_name": "Fusion", "hidden_size": text},
        "mapper": {
            "_class_name": "Mapper",
            "hidden_size_in": dims.hidden_size,
            "hidden_size": mapper,
            "layers": size.depth(4),
            "heads": 4,
            "intermediate_size": 4 * mapper,
            "image_tokens": dims.image_tokens,
            "text_tokens": dims.text_tokens,
            "cross_attention_dim": dims.cross_attention_dim,
        },
        "autoencoder": {
            "_class_name": "PretrainedAutoencoder",
            "block_out_channels": [size.width(full, 32) for full in (128, 256, 512, 512)],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": dims.latent_channels,
            "layers_per_block": size.depth(2),
            "sample_size": dims.image_size,
            "scaling_factor": 0.18215,
        },
        "unet": {
            **UNET,
            "sample_size": dims.latent_size,
            "layers_per_block": size.depth(2),
            "block_out_channels": [size.width(full, 32) for full in UNET["block_out_channels"]],
            "cross_attention_dim": dims.cross_attention_dim,
        },
        "language_model": {
            **MODELS["llama"],
            "vocab_size": dims.vocab_size,
            "hidden_size": dims.hidden_size,
            "intermediate_size": size.width(11008),
            "num_hidden_layers": dims.num_hidden_layers,
            "num_attention_heads": dims.num_key_value_heads,
            "bos_token_id": 0,
        },
    }


def make_checkpoint(folder: Path, size: Size) -> int:
    """Write the checkpoint `folder`; returns how many weights it has. What is there already is kept."""
    from accelerate import init_empty_weights

    from storyv_lite.modeling.checkpoints import new_component, write_checkpoint

    count = 0
    for name, config in configs(size).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        with init_empty_weights():
            shapes = {key: tuple(t.shape) for key, t in new_component(folder / name).state_dict().items()}
        without, deep = (("lm_head.weight",), INTO_RESIDUAL) if name == "language_model" else ((), ())
        count += write_random(folder / name, config, shapes, without, deep, size.layers)
    _take_from_shipped(folder)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    record: Mapping[str, Any] = {
        "preset": "llama-2-7b, random",
        "seed": 0,
        "dimensions": dimensions(size).as_dict(),
        "stages": {},
        "sampler": SAMPLER,
        "merge_step": {"reference": -1, "named": -1},
        "first_frame": "char_ldm",
        "context": {"tokens": dimensions(size).max_position_embeddings, "frames": CONTEXT_FRAMES},
        "train_config": {},
    }
    write_checkpoint(folder, record)
    return count


def _take_from_shipped(folder: Path) -> None:
    """Cast, tokenizers and vocabulary of the bundle that ships."""
    shipped = Bundle.open(PACKAGED, verify=False)
    files = [entry.file for entry in (*shipped.tokenizers.values(), shipped.vocabulary_file)]
    for character in shipped.characters:
        facts = {key: getattr(character, key) for key in ("name", "kind", "pronoun", "description")}
        (folder / "characters").mkdir(exist_ok=True)
        note = folder / "characters" / f"{Path(character.portrait.file).stem}.json"
        note.write_text(json.dumps({**facts, "aliases": list(character.aliases)}))
        files.append(character.portrait.file)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shipped.file(file), folder / file)
