"""What a training cannot be made of, said before it begins: numbers, words and sizes that do not go together.

Knows the settings of config.py and what the recipes and networks need of them, by name; builds none of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from storyv_lite.config import STAGES, ModelConfig, TrainConfig, UNetConfig

# Least values by the end of a setting's name; 1 is that of the other whole numbers.
_LEAST: Mapping[str, int] = {
    "seed": 0,
    "max_train_steps": 0,
    "lr_warmup_steps": 0,
    "autoencoder.layers_per_block": 0,
    "judge.layers_per_block": 0,
    "unet.num_attention_heads": 0,
    "trainable_vision_layers": 0,
    "image_text.train_batch_size": 2,  # a frame and a single character
    "context_frames": 8,  # a reduced context (runtime/context.py) and the frame that it is read for
    "text.vocab_size": 258,  # every byte, begin and end
    "language.vocab_size": 259,  # and padding
}
_SHARES = ("_prob", "_ratio", "_share")  # how the names of what lies from 0 to 1 end
_POSITIVE = ("learning_rate", "max_grad_norm", "timestep_shift")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "mixed_precision": ("auto", "no", "bf16"),
    "align.context": ("interleaved", "captions"),
    "unet.prediction_type": ("epsilon", "v_prediction"),
    "unet.beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}
TAKEN = {"autoencoder": "autoencoder", "image_text": "text", "story_lm": "language"}  # what a stage may take


def check(config: TrainConfig) -> list[str]:
    """Every reason why this configuration cannot be trained."""
    problems = [problem for name, value in _settings(config) if (problem := _alone(name, value))]
    problems += _check_stages(config)
    if not config.model.autoencoder.pretrained:
        problems += _check_autoencoder(config.model)
    if not config.model.unet.pretrained:
        problems += _check_unet(config.model.unet)
    return problems + _check_encoders(config)


def _settings(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its name, with its value."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _settings(value, f"{path}{field.name}.")
        else:
            yield path + field.name, value


def _alone(name: str, value: Any) -> str:
    """What is wrong with a setting, whatever the others are; empty when nothing is."""
    needed = ""
    if isinstance(value, str):
        words = next((words for end, words in _WORDS.items() if _ends(name, end)), ())
        return f"`{name}` is `{value}`, not {' or '.join(words)}" if words and value not in words else ""
    if isinstance(value, float):
        if name.endswith(_POSITIVE) and value <= 0:
            needed = "more than 0"
        elif name.endswith("ema_decay") and not 0 <= value < 1:
            needed = "0 up to below 1"
        elif name.endswith(_SHARES) and not 0 <= value <= 1:
            needed = "0 to 1"
        elif value < 0:
            needed = "at least 0"
    elif name != "model.unet.attention_levels" and not isinstance(value, bool):
        numbers = value if isinstance(value, tuple) else (value,)
        least = next((least for end, least in _LEAST.items() if _ends(name, end)), 1)
        if not numbers:
            needed = "one number or more"
        elif min(numbers) < least:
            needed = f"at least {least}"
        elif name == "seed" and value >= 2**63:
            needed = "less than 2**63"
    shown = list(value) if isinstance(value, tuple) else value
    return f"`{name}` is {shown}, {needed} is needed" if needed else ""


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def _check_stages(config: TrainConfig) -> list[str]:
    problems = []
    for name in STAGES:
        part, steps = TAKEN.get(name), getattr(config, name).max_train_steps
        if not steps and not (part and getattr(config.model, part).pretrained):
            without = f" without `model.{part}.pretrained`" if part else ""
            problems.append(f"`{name}.max_train_steps` is 0, at least 1 is needed{without}")
    for name in ("story_lm", "align"):
        told = getattr(config, name)
        if told.min_frames > told.max_frames:
            problems.append(f"`{name}.min_frames` is {told.min_frames}, 1 to `max_frames` is needed")
    for name in ("char_ldm", "align"):
        shared = getattr(config, name)
        if shared.processes < 1 or shared.train_batch_size % shared.processes:
            problems.append(f"`{name}.processes` is at least 1 and divides `{name}.train_batch_size`")
    if config.data.folder:
        problems.append("`data.folder` is set, but only the cartoon world can be trained on so far")
    return problems


def _check_autoencoder(model: ModelConfig) -> list[str]:
    shape, levels = model.autoencoder, len(model.autoencoder.block_out_channels)
    problems = _multiples("model.image_size", [model.image_size], 8)
    if shape.patch_size.bit_count() != 1:
        problems.append(f"`model.autoencoder.patch_size` is {shape.patch_size}, a power of two is needed")
    factor, left = divmod(model.image_size, max(1, model.unet.sample_size))
    if left or factor.bit_count() != 1 or factor < max(shape.patch_size, 2 ** (levels - 1)):
        problems.append(
            f"`model.image_size` {model.image_size} over `model.unet.sample_size` {model.unet.sample_size} "
            f"needs to be a power of two, at least `patch_size` and what the decoder's levels unfold"
        )
    elif factor // max(1, shape.patch_size) > 2 ** (levels - 1):
        problems.append("`model.autoencoder.block_out_channels` has too few levels for `patch_size`")
    if len(shape.layers_per_block) != levels:
        problems.append("`model.autoencoder.layers_per_block` needs one number per width")
    return problems


def _check_unet(unet: UNetConfig) -> list[str]:
    divisor = "num_attention_heads" if unet.num_attention_heads else "attention_head_dim"
    widths, problems = unet.block_out_channels, []
    for key in ("norm_num_groups", divisor):
        problems += _multiples("model.unet.block_out_channels", widths, getattr(unet, key), f"`{key}`")
    if unet.attention_levels and len(unet.attention_levels) != len(widths):
        problems.append("`model.unet.attention_levels` needs one word per width, or none")
    return problems


def _check_encoders(config: TrainConfig) -> list[str]:
    model, problems = config.model, []
    for name in ("text", "vision", "language", "mapper"):
        part = getattr(model, name)
        heads, meaning = part.num_attention_heads, "`num_attention_heads`"
        if name == "language" and not model.language.pretrained:
            heads, meaning = 2 * heads, f"twice {meaning}"  # positions turn pairs of numbers
        problems += _multiples(f"model.{name}.hidden_size", [part.hidden_size], heads, meaning)
    vision = model.vision
    problems += _multiples("model.vision.image_size", [vision.image_size], vision.patch_size, "`patch_size`")
    problems += _multiples("judge.image_size", [config.judge.image_size], 4)
    if bool(model.text.pretrained) != bool(vision.pretrained):
        problems.append("`model.text.pretrained` and `model.vision.pretrained` go together, one is empty")
    if not vision.pretrained and config.char_ldm.trainable_vision_layers > vision.num_hidden_layers:
        problems.append(
            f"`char_ldm.trainable_vision_layers` is {config.char_ldm.trainable_vision_layers}, "
            f"at most `model.vision.num_hidden_layers` ({vision.num_hidden_layers}) is needed"
        )
    return problems


def _multiples(name: str, values: Iterable[int], divisor: int, meaning: str = "") -> list[str]:
    """What is wrong with values that shall be multiples of a divisor, which may be a setting beside them."""
    wanted = f"{meaning} ({divisor})" if meaning else str(divisor)
    return [
        f"`{name}` is {value}, a multiple of {wanted} is needed"
        for value in values
        if divisor > 0 and value % divisor
    ]
