"""What a bundle tells about itself, and what it takes from the checkpoint as it is: cast, tokenizers, words.

Knows the manifest's fields beside those that `checkpoint.describe` gives; not how a component is made.
"""

import importlib.metadata
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyv_lite import __version__
from storyv_lite.bundle import component_entry, write_manifest
from storyv_lite.checkpoint import checkpoint_hash, describe
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.manifest import Variant


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
    facts = describe(checkpoint, record)
    portraits = [character["portrait"] for character in facts["characters"]]
    for entry in (*facts["tokenizers"].values(), *portraits, facts["vocabulary"]):
        (folder / entry["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / entry["file"], folder / entry["file"])
    manifest = {
        "name": name,
        **facts,
        "components": {
            component: component_entry(signature(component, dims), variants)
            for component, variants in components.items()
        },
        "provenance": {
            "checkpoint": record.get("preset", ""),
            "checkpoint_sha256": checkpoint_hash(checkpoint),
            "command": _command(),
            "versions": _versions(),
        },
    }
    write_manifest(folder, {**manifest, **(more or {})})


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
