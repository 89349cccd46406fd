"""Ranges of activations in a file: taken once from stories drawn, checked against what they are used for.

Knows the file and which exports it fits; how ranges are taken from parts stands in `ranges`, how stories are
drawn and listened to in `calibrate`.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import checkpoint_hash, describe, read_checkpoint
from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import BundleError, ConfigError, OutputError
from storyv_lite.export.calibrate import STORIES, calibrate, read_stories
from storyv_lite.export.quantize import Ranges
from storyv_lite.export.ranges import ranges_by_parts
from storyv_lite.export.stream import PART_BYTES
from storyv_lite.quantization import DRAWING, SCHEMES, Method, QuantScheme
from storyv_lite.runtime.disk import write_file

SCHEMA = 1
CALLS = 8  # of one component; what its parts hand on is held in memory for each of them


@dataclass(frozen=True)
class StoredRanges:
    """Ranges by component and tensor, and what they were taken of."""

    checkpoint_sha256: str
    latent_size: int  # latents per side
    components: Mapping[Component, Ranges]


def take_ranges(
    checkpoint: Path,
    bundle: Path,
    work: Path,
    stories: int | None = None,
    part_bytes: int = PART_BYTES,
    progress: Callable[[str], None] = lambda message: None,
) -> StoredRanges:
    """Ranges of what draws: `bundle` draws calibration stories, float32 parts run on what it was fed.

    `stories` is how many of them, None for as many as an export draws. Components are loaded for each use
    while stories are drawn. Each part is written to the folder `work` and removed again. Raises
    `ConfigError` when the bundle was made of another checkpoint, `BundleError` for a faulty checkpoint.
    """
    record = read_checkpoint(checkpoint)
    describe(checkpoint, record)
    dims, sha256 = Dimensions(**record["dimensions"]), checkpoint_hash(checkpoint)
    if Bundle.open(bundle, verify=False).provenance.get("checkpoint_sha256") != sha256:
        raise ConfigError(
            f"`{bundle}` was not made of `{checkpoint}`, whose stories it is to draw",
            hint=f"make one: storyv-lite export {shlex.quote(str(checkpoint))} --low-memory --fp16",
        )
    heard = calibrate(bundle, read_stories(checkpoint)[: stories or STORIES], progress, DRAWING, kept=())
    found = {}
    for component in DRAWING:
        feeds = heard[component]
        chosen = feeds[:: -(-len(feeds) // CALLS)]
        scheme = SCHEMES["int8"][component]
        found[component] = ranges_by_parts(
            component, checkpoint, dims, scheme, chosen, work, part_bytes, progress
        )
    return StoredRanges(sha256, dims.latent_size, found)


def save_ranges(path: Path, stored: StoredRanges) -> None:
    """Write ranges as JSON, complete or not at all. Raises `OutputError` when they cannot be written."""
    try:
        write_file(path, (json.dumps({"schema": SCHEMA, **asdict(stored)}, indent=1) + "\n").encode())
    except OSError as fault:
        raise OutputError(
            f"`{path}` cannot be written: {fault}", "make room, or name another file"
        ) from fault


def load_ranges(path: Path) -> StoredRanges:
    """Read what `save_ranges` wrote. Raises `BundleError`."""
    command = shlex.join(["storyv-lite", "ranges", "-o", str(path)])
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
        components = {
            Component(name): {tensor: (float(low), float(high)) for tensor, (low, high) in ranges.items()}
            for name, ranges in content["components"].items()
        }
        return StoredRanges(str(content["checkpoint_sha256"]), int(content["latent_size"]), components)
    except FileNotFoundError:
        raise BundleError(f"`{path}` is missing", hint=f"take ranges: {command}") from None
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as fault:
        reason = f"lacks {fault}" if isinstance(fault, KeyError) else str(fault)
        raise BundleError(
            f"`{path}` holds no ranges of activations: {reason}",
            hint=f"take ranges: {command} --force",
        ) from fault


def ranges_for(
    path: Path, checkpoint: Path, dims: Dimensions, schemes: Mapping[Component, QuantScheme]
) -> Mapping[Component, Ranges]:
    """The ranges in a file, for an export of `checkpoint` as `schemes`.

    Raises `BundleError` for a file that is missing or damaged, `ConfigError` for ranges of another checkpoint
    or size, or when a component has none.
    """
    stored = load_ranges(path)
    again = "take ranges again: " + shlex.join(
        ["storyv-lite", "ranges", str(checkpoint), "-o", str(path), "--force"]
    )
    if (sha256 := checkpoint_hash(checkpoint)) != stored.checkpoint_sha256:
        raise ConfigError(
            f"`{path}` holds ranges of the checkpoint {stored.checkpoint_sha256[:12]}, "
            f"`{checkpoint}` is {sha256[:12]}",
            again,
        )
    if (size := stored.latent_size) != dims.latent_size:
        raise ConfigError(
            f"`{path}` holds ranges of {size}x{size} latents, "
            f"`{checkpoint}` draws {dims.latent_size}x{dims.latent_size}",
            again,
        )
    for component, scheme in schemes.items():
        if scheme.default is Method.STATIC and component not in stored.components:
            raise ConfigError(f"`{path}` has no ranges of `{component}`", again)
    return stored.components
