"""What a bundle tells about itself, and what it takes from the checkpoint as it is: cast, tokenizers, words.

Knows the manifest's fields and where a checkpoint keeps them; not how a component is made.
"""

import hashlib
import importlib.metadata
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyv_lite import __version__
from storyv_lite.bundle import Variant, component_entry, file_entry, hash_file, write_manifest
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BundleError


def finish(
    checkpoint: Path,
    record: Mapping[str, Any],
    folder: Path,
    name: str,
    components: Mapping[Component, tuple[Variant, ...]],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Copy what is not a graph and write the manifest, with `more` fields in it."""
    dims = Dimensions(**record["dimensions"])
    scheduler = _json(checkpoint / "scheduler" / "scheduler_config.json")
    tokenizers = {}
    for tokenizer in ("text_encoder", "language_model"):
        tokenizers[tokenizer] = _copy(checkpoint, folder, f"tokenizers/{tokenizer}/tokenizer.json")
    context = record.get("context") or {
        "tokens": dims.max_position_embeddings,
        "frames": trained_frames(record["train_config"]),
    }
    manifest = {
        "name": name,
        "model": {
            "dimensions": dims.as_dict(),
            "bos_token_id": _json(checkpoint / "language_model" / "config.json")["bos_token_id"],
            "prediction_type": scheduler["prediction_type"],
            "scheduler": {key: value for key, value in scheduler.items() if not key.startswith("_")},
            "sampler": record["sampler"],
            "merge_step": record["merge_step"],
            "first_frame": record["first_frame"],
            "context": context,
        },
        "components": {
            component: component_entry(signature(component, dims), variants)
            for component, variants in components.items()
        },
        "tokenizers": tokenizers,
        "characters": _copy_cast(checkpoint, folder),
        "vocabulary": _copy(checkpoint, folder, "vocabulary.json"),
        "provenance": {
            "checkpoint": record.get("preset", ""),
            "checkpoint_sha256": checkpoint_hash(checkpoint),
            "command": _command(),
            "versions": _versions(),
        },
    }
    write_manifest(folder, {**manifest, **(more or {})})


def trained_frames(config: Mapping[str, Any]) -> int:
    """The longest context that `align`, the last stage to teach the language model, read at once."""
    settings = config["align"]
    longest = int(settings["max_frames"])
    return min(longest, int(settings.get("context_frames", longest)))  # unknown to older checkpoints


def checkpoint_hash(checkpoint: Path) -> str:
    """One SHA-256 over the weights, configurations and texts that a bundle is made of.

    `checkpoint.json` itself is left out: it also counts seconds and resumed runs.
    """
    total = hashlib.sha256()
    patterns = ("*/config.json", "*/model.safetensors", "scheduler/*.json", "tokenizers/*/tokenizer.json")
    files = [
        file
        for pattern in (*patterns, "characters/*", "vocabulary.json")
        for file in checkpoint.glob(pattern)
        if file.parent.name != "judge"  # which measures drawn pictures and is in no bundle
    ]
    for file in sorted(files, key=lambda path: path.relative_to(checkpoint).as_posix()):
        total.update(f"{file.relative_to(checkpoint).as_posix()} {hash_file(file)}\n".encode())
    return total.hexdigest()


def _copy(checkpoint: Path, folder: Path, relative: str) -> dict[str, Any]:
    source, target = checkpoint / relative, folder / relative
    if not source.is_file():
        raise BundleError(f"`{source}` is missing from the checkpoint", hint="storyv-lite train")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return asdict(file_entry(folder, relative))


def _copy_cast(checkpoint: Path, folder: Path) -> list[dict[str, Any]]:
    cast = []
    for file in sorted((checkpoint / "characters").glob("*.json")):
        portrait = _copy(checkpoint, folder, f"characters/{file.stem}.png")
        cast.append({**_json(file), "portrait": portrait})
    return cast


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise BundleError(f"`{file}` cannot be read: {fault}", hint="storyv-lite train") from fault
    return content


def _command() -> str:
    """The command line, without the folder the program lies in."""
    program = Path(sys.argv[0]).name
    return shlex.join(["storyv-lite" if program == "__main__.py" else program, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    names = ("torch", "transformers", "diffusers", "onnx", "onnxruntime-gpu", "onnxruntime")
    found = {"storyv-lite": __version__}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
