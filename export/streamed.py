"""A whole checkpoint exported on a machine smaller than the model: every component by parts, then one bundle.

Knows the order of the work, and what makes a half-finished export one that can be taken up again: the same
checkpoint, schemes, ranges and size of parts. Nothing is drawn: no stories are compared, ranges of
activations are read from a file; the gate is the distance of every stored weight.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storyv_lite import __version__
from storyv_lite.bundle import hash_file, part_entry, refuse_taken
from storyv_lite.checkpoint import TOKEN_ROWS, describe, embedding_scale, read_checkpoint
from storyv_lite.components import Component, Dimensions
from storyv_lite.coverage import Stored, coverage_of
from storyv_lite.errors import BundleError, ConfigError, OutputError
from storyv_lite.export.manifest import finish
from storyv_lite.export.specs import GRAPHS
from storyv_lite.export.stored_ranges import ranges_for
from storyv_lite.export.stream import PART_BYTES, Progress, bytes_per_weight, check_space, stream_component
from storyv_lite.export.weights import of_folder
from storyv_lite.manifest import Variant
from storyv_lite.quantization import FP16, Method, QuantScheme, plan
from storyv_lite.runtime.disk import locked, write_file

TABLE = "weight.npy"
REQUEST = "request.json"
OLD = "old"
_LEAVE = "leave `--ranges` out, or export with `--int8`"
MARGIN = 1.1  # of the disk space that stored weights need: graphs, pages, layers that stay wider


def stream_checkpoint(
    checkpoint: Path,
    out: Path,
    scheme: str,
    force: bool = False,
    part_bytes: int = PART_BYTES,
    progress: Progress = lambda message: None,
    ranges: Path | None = None,
) -> Path:
    """Write the bundle of `checkpoint` to the folder `out`, one tensor at a time, and return it.

    `ranges` is the file (see `stored_ranges`) for components whose activations are rounded.
    What a killed export left is taken up again. Nothing appears under `out` before everything is written.
    Raises `OutputError` when `out` is taken (unless `force`) or the disk too small, `ConfigError` for schemes
    that need ranges and for ranges of something else, `BundleError` for a faulty checkpoint or file,
    `ParityError` for weights that are lost.
    """
    schemes = plan(scheme)
    refuse_unwritten(schemes, ranges)
    record = read_checkpoint(checkpoint)
    describe(checkpoint, record)
    dims = Dimensions(**record["dimensions"])
    known = ranges_for(ranges, checkpoint, dims, schemes) if ranges else {}
    work = out.with_name(f".{out.name}.streamed")
    if (work / OLD).exists() and not out.exists():  # killed between two renames
        (work / OLD).rename(out)
    refuse_taken(out, force)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise OutputError(f"`{work}` cannot be made: {fault}") from fault
    with locked(work):
        _take_up(work, _request(checkpoint, schemes, part_bytes, ranges), progress)
        bundle, records = work / "bundle", work / "records"
        there = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        check_space(work, max(0, _needed(checkpoint, schemes) - there))
        components: dict[Component, tuple[Variant, ...]] = {}
        for component in GRAPHS:
            given = (component, checkpoint, dims, schemes[component], bundle, records, part_bytes)
            variant = stream_component(*given, known.get(component), progress)
            components[component] = (variant,)
        progress("write the token table")
        components[Component.TOKEN_EMBEDDING] = (write_table(checkpoint, bundle),)
        finish(checkpoint, record, bundle, out.name, components)
        if out.exists():
            out.rename(work / OLD)
        bundle.rename(out)
    shutil.rmtree(work, ignore_errors=True)
    return out


def refuse_unwritten(schemes: Mapping[Component, QuantScheme], ranges: Path | None) -> None:
    """Raise `ConfigError` for a scheme that cannot be written so, or that needs ranges and has none."""
    for component, scheme in schemes.items():
        if scheme.half and scheme.default is Method.STATIC:  # ranges are taken of graphs in 32 bits
            raise ConfigError(
                f"`{component}` as {scheme.name} is not written one tensor at a time",
                hint=f"store it otherwise: `--scheme {component}=half` or `--scheme {component}=int4`",
            )
        if scheme.default is Method.STATIC and ranges is None:
            raise ConfigError(
                f"`{component}` as {scheme.name} rounds activations, and their ranges are not known",
                hint="take them with `storyv-lite ranges CHECKPOINT -o FILE` and give `--ranges FILE`, "
                f"or store it otherwise: `--scheme {component}=int4`",
            )
    if ranges is not None and all(scheme.default is not Method.STATIC for scheme in schemes.values()):
        raise ConfigError("no part of this export rounds activations, so it has no use for ranges", _LEAVE)


def write_table(checkpoint: Path, folder: Path) -> Variant:
    """Write the token table of a language model in 16 bits. Raises `BundleError` when there is none."""
    source = checkpoint / Component.LANGUAGE_MODEL
    target = folder / Component.TOKEN_EMBEDDING / TABLE
    target.parent.mkdir(parents=True, exist_ok=True)
    with of_folder(source) as weights:
        found = next((weight for name, weight in weights.items() if name.endswith(TOKEN_ROWS)), None)
        if found is None:
            raise BundleError(f"`{source}` lacks a token table, `{TOKEN_ROWS}`", hint="storyv-lite train")
        table = (found.read() * np.float32(embedding_scale(source))).astype(np.float16)
    np.save(target, table, allow_pickle=False)
    part = part_entry(folder, f"{Component.TOKEN_EMBEDDING}/{TABLE}")
    stored = Stored(TABLE, Method.HALF, table.size, table.nbytes)
    return Variant("fp16", "table", (part,), {}, coverage_of([stored], FP16))


def _request(
    checkpoint: Path, schemes: Mapping[Component, QuantScheme], part_bytes: int, ranges: Path | None
) -> dict[str, Any]:
    """What has to be the same for parts to be of use: files are known by size and time, they may be large."""
    files = {
        file.relative_to(checkpoint).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns]
        for pattern in ("*/*.safetensors", "*/*.json")
        for file in sorted(checkpoint.glob(pattern))
    }
    names = {str(component): scheme.name for component, scheme in schemes.items()}
    request = {"version": __version__, "files": files, "schemes": names, "part_bytes": part_bytes}
    return request | ({"ranges": hash_file(ranges)} if ranges else {})


def _take_up(work: Path, request: Mapping[str, Any], progress: Progress) -> None:
    """Keep what an export with the same request left in `work`; anything else there is removed."""
    text = json.dumps(request, sort_keys=True).encode()
    note = work / REQUEST
    if note.is_file() and note.read_bytes() == text:
        progress("take up the export that was begun")
        return
    for entry in work.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else os.unlink(entry)
    write_file(note, text)


def _needed(checkpoint: Path, schemes: Mapping[Component, QuantScheme]) -> int:
    """Bytes of the bundle, about."""
    widest = max(map(bytes_per_weight, schemes.values()))
    total = 0.0
    for folder in sorted(file.parent for file in checkpoint.glob("*/config.json")):
        scheme = next((s for c, s in schemes.items() if c == folder.name), None)
        if any(folder.glob("*.safetensors")):
            with of_folder(folder) as weights:
                sizes = {name: weight.size for name, weight in weights.items()}
            table = sum(size for name, size in sizes.items() if name.endswith(TOKEN_ROWS))
            total += 2 * table + (sum(sizes.values()) - table) * (
                bytes_per_weight(scheme) if scheme else widest
            )
    return int(MARGIN * total)
