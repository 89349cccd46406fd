"""A real model of every part at the smallest useful size: random weights, true tokenizers, true files.

What a trained checkpoint holds, this one holds; only its pictures are noise.
"""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from storyv_lite.components import Dimensions
from storyv_lite.config import LanguageConfig, UNetConfig
from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.modeling.checkpoints import save_component, write_checkpoint
from storyv_lite.modeling.fusion import Fusion
from storyv_lite.modeling.mapper import Mapper
from storyv_lite.modeling.story_lm import VisualProjection, build_language_model
from storyv_lite.modeling.unet import build_unet

CAST = {
    "milo": ("fox", "he", "a fox in a blue jumper"),
    "luna": ("bunny", "she", "a bunny in a pink dress"),
    "bruno": ("bear", "he", "a bear in a red vest"),
}
STORIES = (
    ("Milo the fox is waving in the meadow.", "He is holding a red balloon.", "Luna is running to him."),
    ("Luna is sitting in the kitchen with a cake.", "She is sleeping now.", "Bruno is standing there too."),
    ("Bruno and Milo are jumping on the beach.", "They have a ball.", "The bear is reading a book."),
    ("Luna is standing in the snow.", "Milo is there with an umbrella.", "They are waving."),
)


def text_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE over lower-cased text, as the text encoder reads it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    return _train(tokenizer, ["<|startoftext|>", "<|endoftext|>"], vocab_size)


def story_tokenizer(vocab_size: int, image_tokens: int) -> Tokenizer:
    """Byte-level BPE of the language model; the [IMG] tokens are the last ids."""
    tokenizer = _train(Tokenizer(models.BPE()), ["<s>", "</s>", "<pad>"], vocab_size)
    fillers = [f"<unused{index}>" for index in range(vocab_size - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([*fillers, *(f"[IMG{index}]" for index in range(image_tokens))])
    return tokenizer


def split_into_shards(component: Path, count: int = 2) -> None:
    """Put a component's weights into several files and an index, as transformers names them."""
    whole = component / "model.safetensors"
    tensors, weight_map = load_file(whole), dict[str, str]()
    for index in range(count):
        shard = f"model-{index + 1:05d}-of-{count:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[index::count]}
        save_file(part, component / shard)
        weight_map |= dict.fromkeys(part, shard)
    whole.unlink()
    (component / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_tiny_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint folder in the documented format; equal seeds give equal bytes."""
    dims = Dimensions(
        image_size=32,
        latent_channels=4,
        latent_size=8,
        text_tokens=64,
        cross_attention_dim=32,
        vision_image_size=32,
        vocab_size=404,
        hidden_size=64,
        num_hidden_layers=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        image_tokens=4,
        visual_tokens=2,
    )
    texts = text_tokenizer()
    story = story_tokenizer(dims.vocab_size - dims.image_tokens, dims.image_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in _components(dims, texts.get_vocab_size()).items():
            save_component(module, folder / name)
    for name, tokenizer in (("text_encoder", texts), ("language_model", story)):
        (folder / "tokenizers" / name).mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizers" / name / "tokenizer.json"))
    scheduler = {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    _write_cast(folder)
    sampler = {
        "name": "dpmsolver++",
        "num_inference_steps": 4,
        "guidance_scale": 3.0,
        "timestep_spacing": "trailing",
    }
    write_checkpoint(
        folder,
        {
            "preset": "tiny",
            "created": "2026-01-01T00:00:00+00:00",
            "seed": seed,
            "data_version": "tiny",
            "dimensions": dims.as_dict(),
            "stages": {},
            "command": "tests",
            "git_revision": "",
            "versions": {},
            "sampler": sampler,
            "merge_step": {"reference": -1, "named": -1},
            "first_frame": "language_model",
            "train_config": {"align": {"max_frames": 8, "context_frames": 8}},
        },
    )
    return folder


def _components(dims: Dimensions, text_vocab_size: int) -> dict[str, nn.Module]:
    autoencoder = ToonAutoencoder(
        latent_channels=dims.latent_channels,
        block_out_channels=(32, 32),
        layers_per_block=(1, 1),
        patch_size=4,
        scale_factor=4,
        latents_mean=(0.1,) * dims.latent_channels,
        latents_std=(0.5,) * dims.latent_channels,
    )
    unet = UNetConfig(
        sample_size=dims.latent_size, block_out_channels=(32, 64), attention_levels=(True, False)
    )
    language = LanguageConfig(
        vocab_size=dims.vocab_size - dims.image_tokens,
        hidden_size=dims.hidden_size,
        intermediate_size=96,
        num_hidden_layers=dims.num_hidden_layers,
        num_attention_heads=dims.num_key_value_heads,
        max_position_embeddings=dims.max_position_embeddings,
        image_tokens=dims.image_tokens,
    )
    text = CLIPTextConfig(
        vocab_size=text_vocab_size,
        hidden_size=dims.cross_attention_dim,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=dims.text_tokens,
        projection_dim=dims.cross_attention_dim,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    vision = CLIPVisionConfig(
        image_size=dims.vision_image_size,
        patch_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=dims.cross_attention_dim,
    )
    return {
        "autoencoder": autoencoder,
        "text_encoder": CLIPTextModel(text),
        "vision_encoder": CLIPVisionModelWithProjection(vision),
        "character_encoder": CLIPVisionModelWithProjection(vision),
        "fusion": Fusion(dims.cross_attention_dim),
        "unet": build_unet(unet, dims.latent_channels, dims.cross_attention_dim),
        "language_model": build_language_model(language),
        "visual_projection": VisualProjection(vision.hidden_size, dims.visual_tokens, dims.hidden_size),
        "mapper": Mapper(dims.hidden_size, 32, 1, 2, 64, dims.image_tokens, dims.text_tokens, 32),
    }


def _write_cast(folder: Path) -> None:
    (folder / "characters").mkdir()
    for index, (name, (kind, pronoun, description)) in enumerate(CAST.items()):
        record = {"name": name, "kind": kind, "pronoun": pronoun, "description": description}
        _write(folder / "characters" / f"{name}.json", {**record, "aliases": [kind, f"the {kind}"]})
        portrait = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(portrait).ellipse((8, 8, 56, 56), fill=("orange", "pink", "brown")[index])
        portrait.save(folder / "characters" / f"{name}.png")
    words = sorted({word.strip(".").lower() for story in STORIES for text in story for word in text.split()})
    vocabulary = {
        "characters": list(CAST),
        "places": ["meadow", "kitchen", "beach", "snow"],
        "actions": ["waving", "running", "sitting", "sleeping", "standing", "jumping"],
        "props": ["balloon", "cake", "ball", "book", "umbrella"],
        "words": words,
    }
    _write(folder / "vocabulary.json", vocabulary)
    lines = []
    for seed, story in enumerate(STORIES):
        names = [[name for name in CAST if name in text.lower()] for text in story]
        lines.append({"seed": seed, "captions": list(story), "original": list(story), "characters": names})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "calibration.jsonl").write_text(text, encoding="utf-8")


def _train(tokenizer: Tokenizer, special_tokens: list[str], vocab_size: int) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [f" Image: <img></img> Caption: {text} Image: " for story in STORIES for text in story]
    tokenizer.train_from_iterator(prompts, trainer)
    return tokenizer


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
