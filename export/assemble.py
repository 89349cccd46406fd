"""The export recipe: for each component capture, quantize, verify; then one bundle, complete or not at all.

Knows the order of the work and what goes into the manifest; how each step is done stands in the step's file.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from storyv_lite.bundle import Variant, part_entry
from storyv_lite.checkpoint import describe, read_checkpoint
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BundleError, OutputError
from storyv_lite.export.calibrate import Calibration, Feed, activation_ranges, calibrate
from storyv_lite.export.capture import DATA, GRAPH, capture, load_graph, quiet, save_graph
from storyv_lite.export.halve import halve
from storyv_lite.export.manifest import finish
from storyv_lite.export.quantize import assert_cannot_saturate, quantize, static_tensors
from storyv_lite.export.simplify import shorten
from storyv_lite.export.specs import GRAPHS
from storyv_lite.export.verify import CASES, save_cases, verify
from storyv_lite.modeling.components import build
from storyv_lite.modeling.loading import token_table
from storyv_lite.quantization import QuantScheme, plan

TABLE = "weight.npy"
VERIFIED_CASES = 8  # per component; evenly taken from the calibration
_NEWEST_HINT = "train one with `storyv-lite train`, or name its folder: `storyv-lite export CHECKPOINT`"

Progress = Callable[[str], None]


def newest_checkpoint(cwd: Path) -> Path:
    """The newest of `cwd/checkpoints/*` by the time recorded inside, else the repository's own.

    Raises `BundleError` with the way to get one when there is none.
    """
    found = {
        file.parent: str(read_checkpoint(file.parent).get("created", ""))
        for file in sorted((cwd / "checkpoints").glob("*/checkpoint.json"))
    }
    if found:
        return max(found, key=lambda folder: (found[folder], folder.name))
    own = Path(__file__).resolve().parents[1] / "checkpoints" / "toon"
    if (own / "checkpoint.json").is_file():
        return own
    raise BundleError(f"there is no checkpoint in `{cwd / 'checkpoints'}`", hint=_NEWEST_HINT)


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    scheme: str = "int8",
    force: bool = False,
    progress: Progress = lambda message: None,
    complete: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the bundle of `checkpoint` to the folder `out` and return it.

    Nothing appears under `out` before every component has passed the parity gate. Raises `OutputError` when
    `out` is taken (unless `force`), `BundleError` for a faulty checkpoint, `ParityError` at the gate.
    `complete` is called with the folder of the finished bundle before that gets its name.
    """
    schemes = plan(scheme)
    record = read_checkpoint(checkpoint)
    describe(checkpoint, record)  # what is unfinished is told before anything is traced
    if out.exists() and not force:
        raise OutputError(f"`{out}` exists", hint="choose another place with `--out`, or pass `--force`")
    work = out.with_name(f".{out.name}.partial-{os.getpid()}")
    bundle, wide = work / "bundle", work / "fp32"
    try:
        bundle.mkdir(parents=True)
    except OSError as fault:
        raise OutputError(f"`{work}` cannot be made: {fault}") from fault
    try:
        _write_wide(checkpoint, record, wide, progress)
        calibration = calibrate(wide, _stories(checkpoint), progress)
        _write_bundle(checkpoint, record, schemes, wide, calibration, bundle, out.name, progress)
        complete(bundle)
        if out.exists():
            shutil.rmtree(out)
        bundle.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _write_wide(checkpoint: Path, record: Mapping[str, Any], wide: Path, progress: Progress) -> None:
    """A whole bundle in float32: what calibration draws with and quantization starts from."""
    dims = Dimensions(**record["dimensions"])
    components: dict[Component, tuple[Variant, ...]] = {}
    for component in GRAPHS:
        progress(f"capture {component}")
        save_graph(capture(_module(component, checkpoint, dims), component, dims), wide / component)
        components[component] = (_variant(wide, component, "fp32", {}),)
    components[Component.TOKEN_EMBEDDING] = (_write_table(checkpoint, wide),)
    finish(checkpoint, record, wide, "fp32", components)


def _write_bundle(
    checkpoint: Path,
    record: Mapping[str, Any],
    schemes: Mapping[Component, QuantScheme],
    wide: Path,
    calibration: Calibration,
    bundle: Path,
    name: str,
    progress: Progress,
) -> None:
    dims = Dimensions(**record["dimensions"])
    for component in GRAPHS:
        progress(f"quantize {component} as {schemes[component].name}")
        feeds, model = calibration[component], load_graph(wide / component)
        ranges = activation_ranges(model, static_tensors(model, schemes[component]), feeds)
        quantized = quantize(model, schemes[component], ranges)
        assert_cannot_saturate(quantized)
        if schemes[component].half:
            quantized = halve(quantized)
        save_graph(shorten(quantized), bundle / component)
        module = _module(component, checkpoint, dims)
        save_cases(bundle / component, _references(module, component, dims, feeds))
    progress("verify every component")
    names = {str(component): schemes[component].name for component in GRAPHS}
    parity = verify({component: bundle / component for component in names}, names)
    components: dict[Component, tuple[Variant, ...]] = {}
    for component in GRAPHS:
        (bundle / component / CASES).unlink()
        components[component] = (_variant(bundle, component, names[component], parity[component]),)
    components[Component.TOKEN_EMBEDDING] = (_write_table(checkpoint, bundle),)
    finish(checkpoint, record, bundle, name, components)


def _module(component: Component, checkpoint: Path, dims: Dimensions) -> nn.Module:
    with quiet():  # the libraries talk while they load
        return build(component, checkpoint, dims)


def _references(
    module: nn.Module, component: Component, dims: Dimensions, feeds: list[Feed]
) -> list[tuple[Feed, Feed]]:
    """Some calibration inputs and what the module itself answers to them."""
    specs = signature(component, dims)
    cases: list[tuple[Feed, Feed]] = []
    for feed in feeds[:: max(1, -(-len(feeds) // VERIFIED_CASES))]:
        with torch.no_grad():
            answer = module(*(torch.from_numpy(feed[spec.name]) for spec in specs.inputs))
        tensors = answer if isinstance(answer, tuple) else (answer,)
        outputs = {spec.name: t.numpy() for spec, t in zip(specs.outputs, tensors, strict=True)}
        cases.append((feed, outputs))
    return cases


def _write_table(checkpoint: Path, folder: Path) -> Variant:
    target = folder / Component.TOKEN_EMBEDDING / TABLE
    target.parent.mkdir(parents=True)
    np.save(
        target,
        token_table(checkpoint / "language_model").float().numpy().astype(np.float16),
        allow_pickle=False,
    )
    part = part_entry(folder, f"{Component.TOKEN_EMBEDDING}/{TABLE}")
    return Variant("fp16", "table", (part,), {})


def _variant(folder: Path, component: Component, scheme: str, parity: Mapping[str, Any]) -> Variant:
    data = f"{component}/{DATA}" if (folder / component / DATA).is_file() else None
    return Variant(scheme, "onnx", (part_entry(folder, f"{component}/{GRAPH}", data),), parity)


def _stories(checkpoint: Path) -> list[dict[str, Any]]:
    file = checkpoint / "calibration.jsonl"
    if not file.is_file():
        raise BundleError(f"`{file}` is missing; export draws its stories", hint="storyv-lite train")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
