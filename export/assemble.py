"""The export recipe: for each component capture, quantize, verify; then one bundle, complete or not at all.

Knows the order of the work and what goes into the manifest; how each step is done stands in the step's file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storyv_lite.bundle import part_entry
from storyv_lite.checkpoint import WEIGHTS, describe, read_checkpoint
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.coverage import coverage_of
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.export.calibrate import (
    STORIES,
    Calibration,
    Feed,
    activation_ranges,
    calibrate,
    input_moments,
    read_stories,
)
from storyv_lite.export.capture import DATA, GRAPH, capture, load_graph, quiet, save_graph
from storyv_lite.export.halve import halve
from storyv_lite.export.layers import moment_tensors, static_tensors
from storyv_lite.export.making import making, publish
from storyv_lite.export.manifest import finish
from storyv_lite.export.mixed import Target, mix
from storyv_lite.export.quantize import assert_cannot_saturate, quantize
from storyv_lite.export.simplify import shorten
from storyv_lite.export.specs import GRAPHS
from storyv_lite.export.story_parity import verify_stories
from storyv_lite.export.stream import check_space
from storyv_lite.export.streamed import write_table
from storyv_lite.export.verify import CASES, Failure, failures, refuse, save_cases, verify
from storyv_lite.export.weight_parity import check_weights
from storyv_lite.export.weights import file_times, refuse_changed, sizes
from storyv_lite.manifest import Variant
from storyv_lite.modeling.components import build
from storyv_lite.quantization import QuantScheme, plan

MANIFEST_GROWTH = 60_000  # bytes that coverage and the choice of widths take
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
    allow_degraded: bool = False,
    target: Target | None = None,
    progress: Progress = lambda message: None,
    complete: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the bundle of `checkpoint` to the folder `out` and return it.

    Nothing appears under `out` before every component and whole stories have passed the parity gate;
    `allow_degraded` lets them fail and says so in the manifest. Raises `OutputError` when
    `out` is taken (unless `force`), `BundleError` for a faulty checkpoint, `ConfigError` for one in several
    files, `ParityError` at the gate.
    `complete` is called with the folder of the finished bundle before that gets its name.
    """
    schemes, written = plan(scheme), file_times(checkpoint)
    record = read_checkpoint(checkpoint)
    describe(checkpoint, record)  # what is unfinished is told before anything is traced
    _refuse_shards(checkpoint)
    stories = read_stories(checkpoint)
    with making(out, "partial", force, keep=False) as work:
        _check_space(work, checkpoint)
        bundle, wide = work / "bundle", work / "fp32"
        bundle.mkdir()
        export_wide(checkpoint, wide, progress)
        calibration = calibrate(wide, stories[:STORIES], progress)
        more: dict[str, Any] = {}
        if target is not None:
            other = _other_bytes(wide)
            mixture = mix(wide, calibration, stories, schemes, target, other, progress)
            schemes, more = mixture.schemes, {"mixture": mixture.record}
        write = (checkpoint, record, schemes, wide, calibration, bundle, out.name, allow_degraded, more)
        _write_bundle(*write, progress)
        refuse_changed(checkpoint, written)
        complete(bundle)
        publish(work, out, force)
    return out


def _refuse_shards(checkpoint: Path) -> None:
    """Raise `ConfigError` where weights lie in several files: models of that size are not held in memory."""
    for file in sorted(checkpoint.glob(f"[!.]*/{WEIGHTS}.index.json")):
        if not (file.parent / WEIGHTS).is_file():
            raise ConfigError(
                f"`{file.parent}` has its weights in several files, which are exported one tensor at a time",
                "add `--low-memory`",
            )


def _check_space(work: Path, checkpoint: Path) -> None:
    """Raise `OutputError` when the disk of `work` cannot hold the float32 graphs and a bundle as large."""
    check_space(work, 2 * 4 * sum(sum(counts.values()) for counts in sizes(checkpoint).values()))


def export_wide(checkpoint: Path, wide: Path, progress: Progress = lambda message: None) -> None:
    """A whole bundle in float32: what calibration draws with and quantization starts from."""
    record = read_checkpoint(checkpoint)
    dims = Dimensions(**record["dimensions"])
    components: dict[Component, tuple[Variant, ...]] = {}
    for component in GRAPHS:
        progress(f"capture {component}")
        save_graph(capture(_module(component, checkpoint, dims), component, dims), wide / component)
        components[component] = (_variant(wide, component, "fp32", {}),)
    components[Component.TOKEN_EMBEDDING] = (write_table(checkpoint, wide),)
    finish(checkpoint, record, wide, "fp32", components)


def _write_bundle(
    checkpoint: Path,
    record: Mapping[str, Any],
    schemes: Mapping[Component, QuantScheme],
    wide: Path,
    calibration: Calibration,
    bundle: Path,
    name: str,
    allow_degraded: bool,
    more: Mapping[str, Any],
    progress: Progress,
) -> None:
    dims = Dimensions(**record["dimensions"])
    weights: dict[Component, dict[str, Any]] = {}
    found: list[Failure] = []
    for component in GRAPHS:
        progress(f"quantize {component} as {schemes[component].name}")
        feeds, scheme = calibration[component], schemes[component]
        model = load_graph(wide / component)
        ranges = activation_ranges(model, static_tensors(model, scheme), feeds)
        moments = input_moments(model, moment_tensors(model, scheme), feeds)
        quantized = quantize(model, scheme, ranges, moments)
        assert_cannot_saturate(quantized.model)
        packed = halve(quantized.model) if scheme.half else quantized.model
        save_graph(shorten(packed), bundle / component)
        found += check_weights(component, load_graph(bundle / component), load_graph(wide / component))
        weights[component] = coverage_of(quantized.stored, scheme)
        module = _module(component, checkpoint, dims)
        save_cases(bundle / component, _references(module, component, dims, feeds))
    progress("verify every component")
    names = {str(component): schemes[component].name for component in GRAPHS}
    parity = verify({component: bundle / component for component in names})
    refuse([] if allow_degraded else [*found, *failures(parity, names, {})])  # before stories are drawn
    components: dict[Component, tuple[Variant, ...]] = {}
    for component in GRAPHS:
        (bundle / component / CASES).unlink()
        figures = {name: value for name, value in parity[component].items() if not math.isnan(value)}
        variant = _variant(bundle, component, names[component], figures, weights[component])
        components[component] = (variant,)
    components[Component.TOKEN_EMBEDDING] = (write_table(checkpoint, bundle),)
    finish(checkpoint, record, bundle, name, components)
    progress("verify stories")
    story = verify_stories(bundle, wide, read_stories(checkpoint))
    found += failures(parity, names, story)
    refuse([] if allow_degraded else found)
    gate = {"parity": story, "degraded": [asdict(failure) for failure in found]}
    finish(checkpoint, record, bundle, name, components, {**gate, **more})


def _other_bytes(wide: Path) -> int:
    """What a bundle holds beside graphs; its manifest, which will be longer, is allowed for."""
    graphs = {wide / component for component in GRAPHS}
    others = (file for file in wide.rglob("*") if file.is_file() and file.parent not in graphs)
    return sum(file.stat().st_size for file in others) + MANIFEST_GROWTH


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
