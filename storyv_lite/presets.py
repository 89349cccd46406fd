"""Named configurations, and how a TOML file and `--set section.key=value` change one.

Knows how settings are read; what they mean stands in config.py, what cannot work in checks.py. Every problem
found is told in one message. Presets differ from the defaults of config.py only in what is written here.
"""

import json
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any, get_args, get_origin

from storyv_lite.checks import check
from storyv_lite.config import TrainConfig
from storyv_lite.errors import ConfigError

HINT = "sections are model.*, data and the stages; see storyv_lite/config.py"


_PACE = {"lr_warmup_steps": 10, "log_steps": 20, "checkpointing_steps": 100}
_MICRO_PACE = {"max_train_steps": 4, "lr_warmup_steps": 1, "log_steps": 1, "checkpointing_steps": 2}
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}

# Every stage in less than three minutes on two cores: it proves the machinery, the pictures are blurs.
_SMOKE: dict[str, Any] = {
    "preset": "toon-smoke",
    "model": {
        "image_size": 64,
        "autoencoder": {"latent_channels": 8, "block_out_channels": (64, 32), "layers_per_block": (1, 1)},
        "text": {"vocab_size": 640, **_SMALL},
        "vision": {"image_size": 32, "patch_size": 8, **_SMALL},
        "unet": {"sample_size": 8, "block_out_channels": (32, 64, 64)},
        "language": {"vocab_size": 640, **_SMALL},
        "mapper": {**_SMALL, "num_hidden_layers": 1},
    },
    "data": {"frames": 400},
    "autoencoder": {"max_train_steps": 300, "train_batch_size": 16, **_PACE},
    "image_text": {"max_train_steps": 100, "train_batch_size": 32, **_PACE},
    "story_lm": {"max_train_steps": 100, "max_frames": 6, "validation_stories": 4, **_PACE},
    "char_ldm": {"max_train_steps": 200, "train_batch_size": 16, **_PACE},
    "align": {
        "max_train_steps": 100,
        "train_batch_size": 16,
        "max_frames": 4,
        "validation_stories": 4,
        **_PACE,
    },
    "judge": {
        "max_train_steps": 60,
        "train_batch_size": 16,
        "image_size": 64,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "test_frames": 32,
        **_PACE,
    },
}

# The smoke preset at four steps a stage, for tests of everything around the training.
_MICRO: dict[str, Any] = {
    "preset": "micro",
    "data": {"frames": 16},
    "autoencoder": {"train_batch_size": 4, **_MICRO_PACE},
    "image_text": {"train_batch_size": 4, **_MICRO_PACE},
    "story_lm": {"train_batch_size": 4, "max_frames": 3, "validation_stories": 1, **_MICRO_PACE},
    "char_ldm": {"train_batch_size": 4, **_MICRO_PACE},
    "align": {"train_batch_size": 4, "max_frames": 3, "validation_stories": 1, **_MICRO_PACE},
    "judge": {"train_batch_size": 4, "image_size": 32, "test_frames": 4, **_MICRO_PACE},
}

# The paper's settings (specification A.5, C.5) on Stable Diffusion 1.5; the language model stays frozen.
_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_PAPER: dict[str, Any] = {
    "model": {
        "image_size": 512,
        "autoencoder": {"pretrained": _DIFFUSION, "latent_channels": 4},
        "text": {
            "pretrained": _DIFFUSION,
            "vocab_size": 49408,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
        },
        "vision": {
            "pretrained": "openai/clip-vit-large-patch14",
            "image_size": 224,
            "patch_size": 14,
            "hidden_size": 1024,
            "num_attention_heads": 16,
        },
        "unet": {"pretrained": _DIFFUSION, "sample_size": 64, "prediction_type": "epsilon"},
        "language": {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "trainable": False,
        },
        "mapper": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
    },
    "autoencoder": {"max_train_steps": 0},
    "image_text": {"max_train_steps": 0},
    "story_lm": {"max_train_steps": 0},
    "char_ldm": {
        "max_train_steps": 25000,
        "train_batch_size": 32,
        "learning_rate": 1e-5,
        "lr_warmup_steps": 0,
        "lr_min_ratio": 1.0,
        "ema_decay": 0.0,
        "conditioning_ratio": 1.0,
        "reg_weight": 1e-3,
        "mask_loss_prob": 0.3,
        "snr_gamma": 0.0,
        "timestep_shift": 1.0,
        "train_text_encoder": False,
    },
    "align": {
        "max_train_steps": 20000,
        "learning_rate": 1e-3,
        "contrast_loss_scale": 0.0,
        "answer_loss_scale": 0.0,
        "lr_warmup_steps": 2000,
        "min_frames": 4,
        "max_frames": 4,
        "drop_prob": 0.0,
    },
}
_OPT: dict[str, Any] = {
    "preset": "opt-6.7b",
    "model": {
        "language": {"pretrained": "facebook/opt-6.7b", "vocab_size": 50272, "max_position_embeddings": 2048}
    },
    "align": {"train_batch_size": 256},  # 64 stories of four frames
}
_LLAMA: dict[str, Any] = {
    "preset": "llama-2-7b",
    "model": {"language": {"pretrained": "meta-llama/Llama-2-7b-chat-hf", "vocab_size": 32000}},
    "align": {"train_batch_size": 128},  # 32 stories of four frames
}

# What each preset changes about the defaults of config.py, one after the other.
PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    "toon": (),
    "toon-smoke": (_SMOKE,),
    "micro": (_SMOKE, _MICRO),
    "opt-6.7b": (_PAPER, _OPT),
    "llama-2-7b": (_PAPER, _LLAMA),
}


def load_config(preset: str = "toon", file: Path | None = None, settings: Iterable[str] = ()) -> TrainConfig:
    """The preset, changed by a TOML file, changed by `section.key=value` settings, checked.

    Raises `ConfigError` that lists every problem: unknown names, wrong types, values that cannot work.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset `{preset}`", hint=f"presets are {', '.join(PRESETS)}")
    config, problems = TrainConfig(), list[str]()
    for values in (*PRESETS[preset], *([] if file is None else [_read_toml(file)])):
        config, more = _changed(config, values, "")
        problems += more
    for setting in settings:
        config, more = _set(config, setting)
        problems += more
    problems += check(config)
    if problems:
        raise ConfigError("; ".join(problems), hint=HINT)
    return config


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, as a checkpoint stores it."""
    return asdict(config)


def train_command(
    preset: str, stored: Mapping[str, Any], out: Path, stage: str = "", more: Mapping[str, Any] | None = None
) -> str:
    """The command that trains in `out` as configured in `stored`, with `more` settings by `section.key`."""
    words = ["storyv-lite", "train", *(["--preset", preset] if preset else []), "-o", str(out)]
    words += ["--stage", stage] if stage else []
    changed: dict[str, Any] = {}
    if preset in PRESETS:
        plain = json.loads(json.dumps(as_dict(load_config(preset))))
        changed = dict(_differing(plain, json.loads(json.dumps(stored)), ""))
    for key, value in {**changed, **(more or {})}.items():
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _differing(preset: Mapping[str, Any], stored: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """What is stored otherwise than in a preset; names that no setting has any more are passed over."""
    for key, value in preset.items():
        if isinstance(value, dict):
            yield from _differing(value, stored.get(key, {}), f"{path}{key}.")
        elif key != "preset" and stored.get(key, value) != value:
            yield f"{path}{key}", stored[key]


def _set(config: TrainConfig, setting: str) -> tuple[TrainConfig, list[str]]:
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        return config, [f"`--set {setting}` is not of the form section.key=value"]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    nested: Any = value
    for key in reversed(path.strip().split(".")):
        nested = {key: nested}
    return _changed(config, nested, "")


def _changed(config: Any, values: Mapping[str, Any], path: str) -> tuple[Any, list[str]]:
    """`config` with `values` put in, and what could not be put in."""
    known, new, problems = {f.name: f.type for f in fields(config)}, dict[str, Any](), list[str]()
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in known:
            problems.append(f"there is no setting `{name}`")
        elif is_dataclass(old := getattr(config, key)):
            if isinstance(value, Mapping):
                new[key], more = _changed(old, value, f"{name}.")
                problems += more
            else:
                problems.append(f"`{name}` is a section, set one of its keys")
        else:
            try:
                new[key] = _as(known[key], value)
            except TypeError:
                problems.append(f"`{name}` is {value!r}, {_needed(known[key])} is needed")
    return replace(config, **new), problems


def _as(kind: Any, value: Any) -> Any:
    """`value` as a field of this type takes it. Raises `TypeError`."""
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_as(get_args(kind)[0], item) for item in items)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and type(value) is not str:
        return str(value)
    if type(value) is not kind or (kind is float and isnan(value)):
        raise TypeError
    return value


def _needed(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list like {'[true, false]' if get_args(kind)[0] is bool else '[64, 32]'}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"`{file}` is missing") from None
    except (OSError, ValueError) as fault:
        raise ConfigError(f"`{file}` cannot be read as TOML ({fault})") from fault
