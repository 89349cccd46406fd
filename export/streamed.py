"""A whole checkpoint exported on a machine smaller than the model: every component by parts, then one bundle.

Knows the order of the work, and what makes a half-finished export one that can be taken up again: the same
checkpoint, schemes, ranges and size of parts. Nothing is drawn: no stories are compared, ranges of
activations are read from a file; the gate is the distance of stored weights, on up to 64 output channels of
every layer. A weight that is no number is refused as it is read.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storyv_lite import __version__
from storyv_lite.bundle import hash_file, part_entry
from storyv_lite.checkpoint import TOKEN_ROWS, describe, embedding_scale, read_checkpoint, train_command
from storyv_lite.components import Component, Dimensions
from storyv_lite.coverage import Stored, coverage_of
from storyv_lite.errors import BundleError, ConfigError, ParityError
from storyv_lite.export.making import clear, making, publish
from storyv_lite.export.manifest import finish
from storyv_lite.export.specs import GRAPHS
from storyv_lite.export.stored_ranges import ranges_for
from storyv_lite.export.stream import PART_BYTES, Progress, bytes_per_weight, check_space, stream_component
from storyv_lite.export.weights import file_times, of_folder, refuse_changed, sizes
from storyv_lite.manifest import Variant
from storyv_lite.quantization import FP16, Method, QuantScheme, plan
from storyv_lite.runtime.disk import write_file

TABLE = "weight.npy"
REQUEST = "request.json"
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
    with making(out, "streamed", force, keep=True) as work:
        request = _request(checkpoint, schemes, part_bytes, ranges)
        _take_up(work, request, progress)
        bundle, records = work / "bundle", work / "records"
        there = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        check_space(work, max(0, _needed(checkpoint, schemes) - there))
        components: dict[Component, tuple[Variant, ...]] = {}
        for component in GRAPHS:
            given = (component, checkpoint, dims, schemes[component], bundle, records, part_bytes)
            try:
                variant = stream_component(*given, known.get(component), progress)
            except ParityError:  # the same weights would be lost again
                shutil.rmtree(work, ignore_errors=True)
                raise
            components[component] = (variant,)
        progress("write the token table")
        components[Component.TOKEN_EMBEDDING] = (write_table(checkpoint, bundle),)
        refuse_changed(checkpoint, request["files"])
        finish(checkpoint, record, bundle, out.name, components)
        publish(work, out, force)
    return out


def refuse_unwritten(schemes: Mapping[Component, QuantScheme], ranges: Path | None) -> None:
    """Raise `ConfigError` for a scheme that cannot be written so, or that needs ranges and has none."""
    rounded = {component: s for component, s in schemes.items() if s.default is Method.STATIC}
    halved = [component for component, scheme in rounded.items() if scheme.half]
    if halved:  # ranges are taken of graphs in 32 bits
        raise ConfigError(
            f"{_told(halved)} as {rounded[halved[0]].name} cannot be written one tensor at a time",
            hint=f"store it otherwise: `--scheme {_stored(halved, 'half')}` or "
            f"`--scheme {_stored(halved, 'int4')}`",
        )
    if rounded and ranges is None:
        names = " and ".join(dict.fromkeys(scheme.name for scheme in rounded.values()))
        raise ConfigError(
            f"{_told(rounded)} as {names}: activations are rounded, and their ranges are not known",
            hint="take them with `storyv-lite ranges CHECKPOINT -o FILE` and give `--ranges FILE`, "
            f"or store it otherwise: `--scheme {_stored(rounded, 'int4')}`",
        )
    if ranges is not None and not rounded:
        raise ConfigError("no part of this export rounds activations, so it has no use for ranges", _LEAVE)


def _told(components: Iterable[Component]) -> str:
    return ", ".join(f"`{component}`" for component in components)


def _stored(components: Iterable[Component], scheme: str) -> str:
    """As `--scheme` takes it."""
    return ",".join(f"{component}={scheme}" for component in components)


def write_table(checkpoint: Path, folder: Path) -> Variant:
    """Write the token table of a language model in 16 bits. Raises `BundleError` when there is none."""
    source = checkpoint / Component.LANGUAGE_MODEL
    target = folder / Component.TOKEN_EMBEDDING / TABLE
    target.parent.mkdir(parents=True, exist_ok=True)
    with of_folder(source) as weights:
        found = next((weight for name, weight in weights.items() if name.endswith(TOKEN_ROWS)), None)
        if found is None:
            raise BundleError(
                f"`{source}` lacks a token table, `{TOKEN_ROWS}`", hint=train_command(checkpoint)
            )
        table = (found.read() * np.float32(embedding_scale(source))).astype(np.float16)
    np.save(target, table, allow_pickle=False)
    part = part_entry(folder, f"{Component.TOKEN_EMBEDDING}/{TABLE}")
    stored = Stored(TABLE, Method.HALF, table.size, table.nbytes)
    return Variant("fp16", "table", (part,), {}, coverage_of([stored], FP16))


def _request(
    checkpoint: Path, schemes: Mapping[Component, QuantScheme], part_bytes: int, ranges: Path | None
) -> dict[str, Any]:
    """What has to be the same for parts to be of use: files are known by size and time, they may be large."""
    names = {str(component): scheme.name for component, scheme in schemes.items()}
    request = {
        "version": __version__,
        "files": file_times(checkpoint),
        "schemes": names,
        "part_bytes": part_bytes,
    }
    return request | ({"ranges": hash_file(ranges)} if ranges else {})


def _take_up(work: Path, request: Mapping[str, Any], progress: Progress) -> None:
    """Keep what an export with the same request left in `work`; anything else there is removed."""
    text = json.dumps(request, sort_keys=True).encode()
    note = work / REQUEST
    if note.is_file() and note.read_bytes() == text:
        progress("take up the export that was begun")
        return
    clear(work)
    write_file(note, text)


def _needed(checkpoint: Path, schemes: Mapping[Component, QuantScheme]) -> int:
    """Bytes of the bundle, about."""
    widest = max(map(bytes_per_weight, schemes.values()))
    total = 0.0
    for component, counts in sizes(checkpoint).items():
        scheme = next((s for c, s in schemes.items() if c == component), None)
        table = sum(count for name, count in counts.items() if name.endswith(TOKEN_ROWS))
        each = bytes_per_weight(scheme) if scheme else widest
        total += 2 * table + (sum(counts.values()) - table) * each
    return int(MARGIN * total)
