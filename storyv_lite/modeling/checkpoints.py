"""Checkpoint folders: `config.json` and `model.safetensors` per component, `checkpoint.json` beside them.

Knows how components are stored and found again, not what they compute. Nothing is ever unpickled, and every
write is atomic: a killed process leaves the old content or the new one, never half of either.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from storyv_lite.checkpoint import SCHEMA as SCHEMA  # what the core knows is offered here as well
from storyv_lite.checkpoint import WEIGHTS as WEIGHTS
from storyv_lite.checkpoint import read_checkpoint as read_checkpoint
from storyv_lite.checkpoint import read_json, swapped, train_command
from storyv_lite.errors import BundleError

NAMED = 5  # tensors that a message about a faulty file names of each kind

# Where each class that a `config.json` may name is defined; anything else is refused.
_CLASSES = {
    "ToonAutoencoder": "storyv_lite.modeling.autoencoder",
    "PretrainedAutoencoder": "storyv_lite.modeling.autoencoder",
    "Fusion": "storyv_lite.modeling.fusion",
    "Judge": "storyv_lite.modeling.judge",
    "Mapper": "storyv_lite.modeling.mapper",
    "VisualProjection": "storyv_lite.modeling.story_lm",
    "CLIPTextModel": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
    "GemmaForCausalLM": "transformers",
    "LlamaForCausalLM": "transformers",
    "OPTForCausalLM": "transformers",
    "Qwen2ForCausalLM": "transformers",
    "Qwen3ForCausalLM": "transformers",
    "UNet2DConditionModel": "diffusers",
    "AutoencoderKL": "diffusers",
}


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda new: _write_text(new, text))


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then swap it for `folder`; see `settle_folder`."""
    new, old = swapped(folder)
    settle_folder(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    write(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def settle_folder(folder: Path) -> None:
    """Finish a swap of `replace_folder` that was interrupted between its two renames."""
    new, old = swapped(folder)
    if not folder.exists() and old.exists():
        (new if new.exists() else old).rename(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)


def settle_checkpoint(folder: Path) -> None:
    """Finish what a training that was killed had left between two renames; only for who writes there."""
    for old in folder.glob(".*.old"):
        settle_folder(folder / old.name.removeprefix(".").removesuffix(".old"))


def save_component(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Store `module` in `folder`, its floating-point weights as `dtype` (None: as they are)."""
    config = _config_of(module)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in module.state_dict().items():
        if (place := (tensor.data_ptr(), tensor.shape)) in seen:
            continue  # tied to a tensor already stored; the class ties it again when it is loaded
        seen.add(place)
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.detach().to(device="cpu", dtype=wanted).contiguous()

    def write(new: Path) -> None:
        save_file(tensors, new / WEIGHTS, metadata={"format": "pt"})
        _write_text(new / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")

    replace_folder(folder, write)


def load_component(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build the module that `folder/config.json` names and fill it; it comes back in evaluation mode.

    Raises `BundleError` when a file is missing or damaged, the class is unknown or a tensor does not fit.
    """
    module = new_component(folder)
    load_weights(module, folder)
    result: nn.Module = module if dtype == torch.float32 else module.to(dtype)
    return result.eval()


def new_component(folder: Path) -> nn.Module:
    """The module that `folder/config.json` names, with the weights its class begins with.

    Raises `BundleError` when the file is missing or damaged, or the class is unknown.
    """
    import importlib

    config = read_json(folder / "config.json")
    name = config.get("_class_name") or (config.get("architectures") or ["?"])[0]
    if name not in _CLASSES:
        raise BundleError(
            f"`{folder / 'config.json'}` names the class `{name}`; known are {', '.join(sorted(_CLASSES))}"
        )
    cls = getattr(importlib.import_module(_CLASSES[name]), name)
    with torch.random.fork_rng(devices=[]):  # initial values are overwritten, the caller's numbers stay
        if _CLASSES[name] == "transformers":
            module: nn.Module = cls(cls.config_class.from_dict(config))
        elif hasattr(cls, "from_config"):
            module = cls.from_config(config)
        else:
            module = cls(**{key: value for key, value in config.items() if not key.startswith("_")})
    return module


def load_weights(module: nn.Module, folder: Path) -> None:
    """Copy the tensors stored in `folder` into `module`, in place.

    Raises `BundleError` when the file is missing or damaged or the tensors are not exactly the module's; it
    names those that are missing, too many or of another shape.
    """
    problems: list[str] = []
    path = folder / WEIGHTS
    own = module.state_dict()
    wanted = {(tensor.data_ptr(), tensor.shape) for tensor in own.values()}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if problem := misfit(name, tuple(file.get_slice(name).get_shape()), own):
                    problems.append(problem)
                elif not problems:
                    own[name].copy_(file.get_tensor(name))
                if name in own:
                    wanted.discard((own[name].data_ptr(), own[name].shape))
    except FileNotFoundError:
        raise BundleError(f"`{path}` is missing", hint=train_command(folder.parent)) from None
    except SafetensorError as damage:
        raise BundleError(f"`{path}` is damaged ({damage})", hint=train_command(folder.parent)) from damage
    missing = [name for name, tensor in own.items() if (tensor.data_ptr(), tensor.shape) in wanted]
    refuse_misfits(path, problems, missing)


def misfit(name: str, shape: tuple[int, ...], own: Mapping[str, torch.Tensor]) -> str:
    """What is wrong with a stored tensor that shall be one of the model's `own`; empty when nothing is."""
    if name not in own:
        return f"holds `{name}`, which the model does not have"
    if shape != (needed := tuple(own[name].shape)):
        return f"has `{name}` in the shape {shape}, the model needs {needed}"
    return ""


def refuse_misfits(path: Path, problems: Sequence[str], missing: Sequence[str]) -> None:
    """Raise `BundleError` telling what is wrong with tensors in `path`, and which of the model it lacks."""
    if missing:
        named = ", ".join(f"`{name}`" for name in missing[:NAMED])
        problems = [*problems, f"lacks {named} ({len(missing)} tensors in all)"]
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise BundleError(f"`{path}` {'; '.join(problems[:NAMED])}{more}")


def has_component(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file()


def write_checkpoint(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `folder/checkpoint.json` with the schema number first."""
    write_json(folder / "checkpoint.json", {"schema": SCHEMA, **content})


def stage_record(folder: Path, stage: str) -> dict[str, Any]:
    """What `checkpoint.json` says about one training stage; empty before the stage began."""
    if not (folder / "checkpoint.json").is_file():
        return {}
    record: dict[str, Any] = read_checkpoint(folder).get("stages", {}).get(stage, {})
    return record


def record_stage(folder: Path, stage: str, record: Mapping[str, Any]) -> None:
    """Replace what `checkpoint.json` says about one training stage."""
    content = read_checkpoint(folder) if (folder / "checkpoint.json").is_file() else {}
    stages = {**content.get("stages", {}), stage: dict(record)}
    write_checkpoint(folder, {**content, "stages": stages})


def _config_of(module: nn.Module) -> dict[str, Any]:
    config: Any = module.config
    name = type(module).__name__
    if hasattr(config, "to_dict"):
        return {**config.to_dict(), "architectures": [name]}
    plain = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return {**json.loads(json.dumps(plain)), "_class_name": name}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
