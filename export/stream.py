"""Export by parts: one component becomes graphs and data files while at most a few tensors are in memory.

Knows the order of the work and how it is taken up again after a kill: a part is written, brought to the disk
and then recorded, so what has a record is whole and is not made again. Structure comes from `structures`,
numbers from the checkpoint's files, one tensor at a time.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from storyv_lite.bundle import hash_file
from storyv_lite.components import Component, Dimensions
from storyv_lite.coverage import Stored, coverage_of
from storyv_lite.errors import ConfigError, OutputError
from storyv_lite.export.capture import DATA, GRAPH, clean
from storyv_lite.export.datafile import DataFile
from storyv_lite.export.halve import halve
from storyv_lite.export.layers import static_tensors
from storyv_lite.export.parts import cut
from storyv_lite.export.quantize import Ranges, quantize
from storyv_lite.export.simplify import shorten
from storyv_lite.export.structures import structure_of
from storyv_lite.export.verify import refuse
from storyv_lite.export.weights import Structure
from storyv_lite.export.work import work_of
from storyv_lite.manifest import Part, Variant
from storyv_lite.memory import format_bytes, return_freed_memory
from storyv_lite.quantization import STORAGE, Method, QuantScheme, Rounding
from storyv_lite.runtime.disk import sync_folder, write_file

PART_BYTES = 2**29  # stored weights of one part, about
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """A part that is on the disk: its files, what was done to its weights, and how far they moved."""

    part: Part
    stored: tuple[Stored, ...]
    errors: Mapping[str, float]  # smallest signal-to-noise ratio of weights, by bits


def stream_component(
    component: Component,
    checkpoint: Path,
    dims: Dimensions,
    scheme: QuantScheme,
    folder: Path,
    records: Path,
    part_bytes: int | None = PART_BYTES,
    ranges: Ranges | None = None,
    progress: Progress = lambda message: None,
    any_size: bool = False,
) -> Variant:
    """Write the graphs of one component into `folder/COMPONENT` and return what the manifest says of them.

    Parts recorded in `records` are taken as they are. `part_bytes` None makes one part. Weights in blocks
    are rounded to nearest: other ways need the wide graph to run. `ranges` are needed for static layers.
    `any_size` leaves the sides of a UNet's latents open (axes `height`, `width`).
    Raises `ConfigError` when a range is missing, `ParityError` for weights too far from what they were,
    `BundleError` for a faulty checkpoint (a weight that is no number is one), `OutputError` for a full disk.
    """
    return_freed_memory()
    scheme = replace(scheme, rounding=Rounding.NEAREST)
    for place in (folder / component, records):
        place.mkdir(parents=True, exist_ok=True)
    written: list[Written] = []
    # who computes in float16 is TensorRT, which reads plain operators only
    with structure_of(component, checkpoint, dims, not scheme.half, any_size) as structure:
        _check_ranges(structure, component, scheme, ranges or {})
        parts = cut(structure, _parameters(scheme, part_bytes, structure))
        for index, part in enumerate(parts):
            name = GRAPH if len(parts) == 1 else f"part-{index:02d}.onnx"
            record = records / f"{component}-{index:02d}-of-{len(parts):02d}.json"
            done = _recorded(record, folder)
            if done is None:
                progress(f"{component}: write part {index + 1} of {len(parts)} as {scheme.name}")
                done = _write(part, component, scheme, ranges, folder, name)
                content = {"part": asdict(done.part), "stored": list(map(asdict, done.stored))}
                write_file(record, json.dumps({**content, "errors": done.errors}).encode())
            written.append(done)
    bits = {bits for one in written for bits in one.errors}
    parity = {f"weights_{b}_bits_snr_db": min(w.errors[b] for w in written if b in w.errors) for b in bits}
    entries = _merged(entry for one in written for entry in one.stored)
    files = tuple(one.part for one in written)
    work = None
    try:
        if scheme.default is not Method.STATIC:  # 8-bit kernels work in buffers of their own
            work = work_of(component, folder, files, dims)
    except ValueError as fault:  # the bundle draws all the same; its plans are less exact
        progress(f"{component}: what it works in is left out of the manifest, {fault}")
    return Variant(scheme.name, "onnx", files, parity, coverage_of(entries, scheme), work=work)


def check_space(place: Path, needed: int) -> None:
    """Raise `OutputError` when the disk of `place` has less than `needed` bytes left."""
    exists = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if (free := shutil.disk_usage(exists).free) < needed:
        raise OutputError(
            f"`{exists}` has {format_bytes(free)} free; export needs about {format_bytes(needed)}",
            hint="name another folder with `-o`",
        )


def bytes_per_weight(scheme: QuantScheme) -> float:
    """Of the scheme's default, scales of blocks included."""
    storage = STORAGE[Method.HALF if scheme.half and scheme.default is Method.WIDE else scheme.default]
    return (storage.bits + storage.scale_bits / (storage.group_size or 2**20)) / 8


def _check_ranges(structure: Structure, component: Component, scheme: QuantScheme, ranges: Ranges) -> None:
    wanted = static_tensors(structure.model, scheme)
    if missing := [name for name in wanted if name not in ranges]:
        raise ConfigError(
            f"the ranges are of another graph of `{component}`: {len(missing)} of {len(wanted)} tensors have "
            f"none, `{missing[0]}` for one",
            hint="take ranges again: storyv-lite ranges CHECKPOINT -o FILE",
        )


def _parameters(scheme: QuantScheme, part_bytes: int | None, structure: Structure) -> int:
    if part_bytes is None:
        return sum(weight.size for weight in structure.weights.values())
    return int(part_bytes / bytes_per_weight(scheme))


def _write(
    part: Structure,
    component: Component,
    scheme: QuantScheme,
    ranges: Ranges | None,
    folder: Path,
    name: str,
) -> Written:
    graph, data = folder / component / name, folder / component / name.replace(GRAPH, DATA)
    if data == graph:
        data = graph.with_name(f"{name}.data")
    with DataFile(data, part.weights, component, scheme.half) as vault:
        quantized = quantize(clean(part.model), scheme, ranges, vault=vault)
    wider = "fp16" if STORAGE[scheme.default].bits < 16 else "fp32"  # `half` is wide by default
    refuse(vault.failures, hint=f"store it wider: `--scheme {component}={wider}`")
    model = halve(quantized.model) if scheme.half else quantized.model
    graph.write_bytes(shorten(model).SerializeToString(deterministic=True))
    with graph.open("rb") as stream:
        os.fsync(stream.fileno())
    sync_folder(graph.parent)
    size, external = graph.stat().st_size, {}
    if vault.size:
        external = {"data": f"{component}/{data.name}", "data_sha256": vault.sha256}
    else:
        data.unlink()
    entry = Part(f"{component}/{name}", size + vault.size, hash_file(graph), **external)
    return Written(entry, quantized.stored, {str(bits): round(db, 2) for bits, db in vault.errors.items()})


def _recorded(record: Path, folder: Path) -> Written | None:
    """What a record says, when the files it names are there in the size it says."""
    try:
        content: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    part = Part(**content["part"])
    files = [folder / name for name in (part.file, part.data) if name]
    if not all(file.is_file() for file in files) or sum(f.stat().st_size for f in files) != part.bytes:
        return None
    if hash_file(folder / part.file) != part.sha256:
        return None
    stored = tuple(
        Stored(**{**entry, "method": Method(entry["method"]), "rounding": Rounding(entry["rounding"])})
        for entry in content["stored"]
    )
    return Written(part, stored, content["errors"])


def _merged(stored: Iterable[Stored]) -> Sequence[Stored]:
    """One entry per name: every part counts its own constants."""
    merged: dict[str, Stored] = {}
    for entry in stored:
        before = merged.get(entry.layer)
        if before is not None:
            parameters = before.parameters + entry.parameters
            entry = replace(before, parameters=parameters, bytes=before.bytes + entry.bytes)
        merged[entry.layer] = entry
    return list(merged.values())
