"""The checkpoint, told in the words of a bundle: facts of the model, cast, tokenizers, where weights lie.

Knows the folder that `train` writes (docs/reference/checkpoint.md) and no framework. `export` copies these
facts into a manifest; a backend that runs weights as they are stored draws with them directly.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyv_lite import presets
from storyv_lite.bundle import Bundle, file_entry, hash_file, parse_manifest
from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import BundleError
from storyv_lite.manifest import Part, Variant

SCHEMA = 1
RECORD = "checkpoint.json"
WEIGHTS = "model.safetensors"
TORCH = "torch"  # the backend: what runs weights as they are stored
TOKEN_ROWS = "embed_tokens.weight"  # how the name of the language model's token table ends
FOLDERS: Mapping[Component, tuple[str, ...]] = {
    Component.TEXT_ENCODER: ("text_encoder",),
    Component.CHARACTER_ENCODER: ("character_encoder",),
    Component.FUSION: ("fusion",),
    Component.TOKEN_EMBEDDING: ("language_model",),
    Component.VISION_ENCODER: ("vision_encoder", "visual_projection"),
    Component.LANGUAGE_MODEL: ("language_model",),
    Component.MAPPER: ("mapper",),
    Component.UNET: ("unet",),
    Component.VAE_DECODER: ("autoencoder",),
}

_NEEDED = ("dimensions", "sampler", "merge_step", "first_frame", "train_config")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of `folder/checkpoint.json`; raises `BundleError` when it is missing, damaged or newer."""
    if not (folder / RECORD).is_file():
        raise BundleError(
            f"`{folder}` is no checkpoint: there is no `{folder / RECORD}`",
            hint="name a folder that `storyv-lite train` wrote",
        )
    content = read_json(folder / RECORD)
    if content.get("schema") != SCHEMA:
        raise BundleError(
            f"`{folder / RECORD}` has schema {content.get('schema')}, this version reads {SCHEMA}",
            hint="pip install --upgrade storyv-lite",
        )
    return content


def unfinished(folder: Path) -> list[str]:
    """The stages that have begun and are not done, or have to learn on behind another; not the judge's."""
    stages = read_checkpoint(folder).get("stages", {})
    return [name for name, record in stages.items() if not record.get("done") and name != "judge"]


def find_checkpoint(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The folder of the checkpoint asked for; a name means `./checkpoints/NAME`. Raises `BundleError`."""
    here = Path.cwd() if folder is None else folder
    for place in (here / name_or_path, here / "checkpoints" / name_or_path):
        if (place / RECORD).is_file():
            return place
    raise BundleError(
        f"`{name_or_path}` is no checkpoint: there is no `{here / name_or_path / RECORD}`",
        hint="name a folder that `storyv-lite train` wrote",
    )


def is_behind(record: Mapping[str, Any]) -> bool:
    """Whether a stage had all its steps and is not done, since one that it needs learned on."""
    return bool(record) and not record["done"] and record["steps"] >= record["max_train_steps"]


def steps_to_catch_up(record: Mapping[str, Any]) -> int:
    """How many steps a stage that is behind may be given in all."""
    return int(record["steps"] + max(1, record["steps"] // 4))


def train_command(folder: Path, stage: str = "") -> str:
    """The command that goes on with the training in `folder`, with the preset and settings of its record."""
    record: dict[str, Any] = {}
    with suppress(BundleError):
        record = read_checkpoint(folder)
    begun = record.get("stages", {}).get(stage, {})
    more = {f"{stage}.max_train_steps": steps_to_catch_up(begun)} if is_behind(begun) else {}
    return presets.train_command(
        str(record.get("preset", "")), record.get("train_config", {}), folder, stage, more
    )


def open_checkpoint(path: Path) -> Bundle:
    """A checkpoint as a bundle without graphs, whose `sha256` is what a bundle made of it calls its source.

    Reads every file once, for that number. Raises `BundleError` when something is missing or damaged.
    """
    record = read_checkpoint(path)
    facts = describe(path, record)
    hashes = _hashes(path)

    def weights(folder: str) -> list[str]:
        single = f"{folder}/{WEIGHTS}"
        shards = [name for name in hashes if name.startswith(f"{folder}/model-")]
        found = [single] if single in hashes else shards
        if not found:
            raise _missing(path / single)
        return found

    def variant(component: Component) -> Variant:
        files = [file for folder in FOLDERS[component] for file in weights(folder)]
        parts = tuple(Part(file, (path / file).stat().st_size, hashes[file]) for file in files)
        return Variant("checkpoint", "table" if component is Component.TOKEN_EMBEDDING else TORCH, parts, {})

    manifest = {
        "name": path.resolve().name,
        **facts,
        "components": {component: {"variants": [asdict(variant(component))]} for component in FOLDERS},
        "provenance": {"checkpoint": record.get("preset", "")},
    }
    return parse_manifest(path / RECORD, manifest, _digest(hashes))


def describe(checkpoint: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """`model`, `tokenizers`, `characters` and `vocabulary` as a manifest holds them; paths are relative.

    Raises `BundleError` when the checkpoint is unfinished or lacks a file.
    """
    if missing := [name for name in _NEEDED if name not in record]:
        raise BundleError(
            f"`{checkpoint / RECORD}` lacks `{missing[0]}`", hint=f"finish it: {train_command(checkpoint)}"
        )
    try:
        return _describe(checkpoint, record)
    except (KeyError, TypeError, ValueError) as fault:
        reason = f"lacks {fault}" if isinstance(fault, KeyError) else f"is malformed: {fault}"
        raise BundleError(
            f"`{checkpoint / RECORD}` {reason}", hint=f"finish it: {train_command(checkpoint)}"
        ) from fault


def frames_read(config: Mapping[str, Any]) -> int:
    """The frames that a bundle reads at once: as many as `align.read_frames` says, if `align` read so many.

    Older checkpoints lack the later settings: they were trained on all they read, and read all of it.
    """
    settings = config["align"]
    return min(
        int(settings[name]) for name in ("max_frames", "context_frames", "read_frames") if name in settings
    )


def checkpoint_hash(checkpoint: Path) -> str:
    """One SHA-256 over the weights, configurations and texts that a bundle is made of.

    `checkpoint.json` itself is left out: it also counts seconds and resumed runs.
    """
    return _digest(_hashes(checkpoint))


def embedding_scale(folder: Path) -> float:
    """What rows of a language model's token table are multiplied by before they are read.

    Raises `BundleError` when the folder's `config.json` cannot be read.
    """
    config = read_json(folder / "config.json")
    return float(config["hidden_size"]) ** 0.5 if config.get("model_type") == "gemma" else 1.0


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file. Raises `BundleError`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except (ValueError, OSError) as damage:
        raise BundleError(f"`{path}` cannot be read ({damage})") from damage
    if not isinstance(content, dict):
        raise BundleError(f"`{path}` holds {type(content).__name__}, an object is needed")
    return content


def swapped(folder: Path) -> tuple[Path, Path]:
    """Where a component's folder is written before it takes its place, and where the one before it goes."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _missing(path: Path) -> BundleError:
    """That a component lacks a file; reading finishes no save: who is writing may be about to."""
    new, old = swapped(path.parent)
    if path.parent.exists() or not old.exists():
        return BundleError(f"`{path}` is missing", hint=train_command(path.parent.parent))
    left = new if new.exists() else old
    return BundleError(
        f"`{path}` is missing: a save was cut off before `{left}` became `{path.parent}`",
        hint=shlex.join(["mv", str(left), str(path.parent)]),
    )


def _describe(checkpoint: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    dims = Dimensions(**record["dimensions"])
    scheduler = read_json(checkpoint / "scheduler" / "scheduler_config.json")
    context = record.get("context") or {
        "tokens": dims.max_position_embeddings,
        "frames": frames_read(record["train_config"]),
    }
    cast = sorted((checkpoint / "characters").glob("*.json"))
    return {
        "model": {
            "dimensions": dims.as_dict(),
            "bos_token_id": read_json(checkpoint / "language_model" / "config.json").get("bos_token_id"),
            "prediction_type": scheduler["prediction_type"],
            "scheduler": {key: value for key, value in scheduler.items() if not key.startswith("_")},
            "sampler": record["sampler"],
            "merge_step": record["merge_step"],
            "first_frame": record["first_frame"],
            "context": context,
        },
        "tokenizers": {
            name: _entry(checkpoint, f"tokenizers/{name}/tokenizer.json")
            for name in ("text_encoder", "language_model")
        },
        "characters": [
            {**read_json(file), "portrait": _entry(checkpoint, f"characters/{file.stem}.png")}
            for file in cast
        ],
        "vocabulary": _entry(checkpoint, "vocabulary.json"),
    }


def _hashes(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of every file that counts, by its path in the checkpoint."""
    patterns = (
        "*/config.json",
        f"*/{WEIGHTS}",
        "*/model-*.safetensors",
        "scheduler/*.json",
        "tokenizers/*/tokenizer.json",
    )
    files = {
        file.relative_to(checkpoint).as_posix(): file
        for pattern in (*patterns, "characters/*", "vocabulary.json")
        for file in checkpoint.glob(pattern)
        if file.parent.name != "judge"  # which measures drawn pictures and is in no bundle
        and not file.parent.name.startswith(".")  # what a save that was cut off has left
    }
    return {name: hash_file(files[name]) for name in sorted(files)}


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in hashes.items()).encode()).hexdigest()


def _entry(checkpoint: Path, relative: str) -> dict[str, Any]:
    if not (checkpoint / relative).is_file():
        raise BundleError(
            f"`{checkpoint / relative}` is missing from the checkpoint", hint=train_command(checkpoint)
        )
    return asdict(file_entry(checkpoint, relative))
