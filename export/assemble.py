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
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.coverage import Stored, describe
from storyv_lite.errors import BundleError, OutputError
from storyv_lite.export.calibrate import Calibration, Feed, activation_ranges, calibrate, input_moments
from storyv_lite.export.capture import DATA, GRAPH, capture, load_graph, quiet, save_graph
from storyv_lite.export.manifest import finish
from storyv_lite.export.quantize import assert_cannot_saturate, moment_tensors, quantize, static_tensors
from storyv_lite.export.simplify import shorten
from storyv_lite.export.specs import GRAPHS, build, token_table
from storyv_lite.export.verify import CASES, save_cases, verify
from storyv_lite.modeling.checkpoints import read_checkpoint
from storyv_lite.quantization import FP16, Method, QuantScheme, plan

TABLE = "weight.npy"
VERIFIED_CASES = 8  # per component; evenly taken from the calibration
_NEWEST_HINT = "train one with `storyv-lite train`, or name its folder: `storyv-lite export CHECKPOINT`"
_NEEDED = ("dimensions", "sampler", "merge_step", "first_frame", "train_config")

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
) -> Path:
    """Write the bundle of `checkpoint` to the folder `out` and return it.

    Nothing appears under `out` before every component has passed the parity gate. Raises `OutputError` when
    `out` is taken (unless `force`), `BundleError` for a faulty checkpoint, `ParityError` at the gate.
    """
    schemes = plan(scheme)
    record = read_checkpoint(checkpoint)
    if missing := [name for name in _NEEDED if name not in record]:
        raise BundleError(
            f"`{checkpoint / 'checkpoint.json'}` lacks `{missing[0]}`",
            hint="finish it with `storyv-lite train`",
        )
    if out.exists() and not force:
        raise OutputError(f"`{out}` exists", hint="choose another place with `--out`, or pass `--force`")
    work = out.with_name(f".{out.name}.partial-{os.getpid()}")
    bundle, wide = work / "bundle", work / "fp32"
    try:
        bundle.mkdir(parents=True)
    except OSError as fault:
        raise OutputError(f"`{work}` cannot be made: {fault}") from fault
    try:
        export_wide(checkpoint, wide, progress)
        calibration = calibrate(wide, read_stories(checkpoint), progress)
        _write_bundle(checkpoint, record, schemes, wide, calibration, bundle, out.name, progress)
        if out.exists():
            shutil.rmtree(out)
        bundle.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def export_wide(checkpoint: Path, wide: Path, progress: Progress = lambda message: None) -> None:
    """A whole bundle in float32: what calibration draws with and quantization starts from."""
    record = read_checkpoint(checkpoint)
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
    weights: dict[Component, dict[str, Any]] = {}
    for component in GRAPHS:
        progress(f"quantize {component} as {schemes[component].name}")
        feeds, scheme = calibration[component], schemes[component]
        model = load_graph(wide / component)
        ranges = activation_ranges(model, static_tensors(model, scheme), feeds)
        moments = input_moments(model, moment_tensors(model, scheme), feeds)
        quantized = quantize(model, scheme, ranges, moments)
        assert_cannot_saturate(quantized.model)
        save_graph(shorten(quantized.model), bundle / component)
        weights[component] = describe(quantized.stored, scheme)
        module = _module(component, checkpoint, dims)
        save_cases(bundle / component, _references(module, component, dims, feeds))
    progress("verify every component")
    names = {str(component): schemes[component].name for component in GRAPHS}
    parity = verify({component: bundle / component for component in names}, names)
    components: dict[Component, tuple[Variant, ...]] = {}
    for component in GRAPHS:
        (bundle / component / CASES).unlink()
        variant = _variant(bundle, component, names[component], parity[component], weights[component])
        components[component] = (variant,)
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
    table = token_table(checkpoint).numpy().astype(np.float16)
    np.save(target, table, allow_pickle=False)
    part = part_entry(folder, f"{Component.TOKEN_EMBEDDING}/{TABLE}")
    stored = Stored(TABLE, Method.HALF, table.size, table.nbytes)
    return Variant("fp16", "table", (part,), {}, describe([stored], FP16))


def _variant(
    folder: Path,
    component: Component,
    scheme: str,
    parity: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
) -> Variant:
    data = f"{component}/{DATA}" if (folder / component / DATA).is_file() else None
    part = part_entry(folder, f"{component}/{GRAPH}", data)
    return Variant(scheme, "onnx", (part,), parity, weights or {})


def read_stories(checkpoint: Path) -> list[dict[str, Any]]:
    """What training left to calibrate with. Raises `BundleError` when the file is missing."""
    file = checkpoint / "calibration.jsonl"
    if not file.is_file():
        raise BundleError(f"`{file}` is missing; export draws its stories", hint="storyv-lite train")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
