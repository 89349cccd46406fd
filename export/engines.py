"""ONNX to TensorRT: the drawing components of a bundle as engines, each beside the graph it was built from.

Knows the builders' interface, which `tensorrt` and `tensorrt-rtx` share, and how an engine gets into a
bundle: complete or not at all, and never a second time for an equal key. The precision of every tensor is the
graph's: a builder that may choose would make another model of it on every GPU.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyv_lite.bundle import MANIFEST, Bundle, part_entry, variant_entry, write_manifest
from storyv_lite.components import Component
from storyv_lite.engine import (
    BUILDERS,
    OPTIONS,
    PORTABLE,
    PROFILES,
    EngineKey,
    engine_variant,
    make_key,
    rebuild_command,
    refuse,
    stale,
)
from storyv_lite.errors import BackendError, BundleError, MissingDependency, OutputError
from storyv_lite.manifest import Variant
from storyv_lite.optional import installed, require
from storyv_lite.quantization import DRAWING
from storyv_lite.runtime.backends import driver

Progress = Callable[[str], None]
Profiles = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Builder:
    """One of the two packages that build engines, and why this one."""

    name: str  # of `engine.BUILDERS`
    module: Any
    gpu: str  # compute capability that it builds for
    reason: str

    @property
    def version(self) -> str:
        return str(self.module.__version__)


@dataclass(frozen=True)
class Engine:
    """One engine of a bundle; `seconds` is 0 for one that was used again."""

    component: Component
    file: str  # relative to the bundle
    bytes: int
    seconds: float


def choose_builder(target: str = "tensorrt") -> Builder:
    """`tensorrt` where it is installed and there is a GPU, which it needs; else `tensorrt-rtx`.

    The target `tensorrt-rtx` is that one alone. Raises `MissingDependency` naming the extra.
    """
    lacking = driver.problem()
    if target == "tensorrt" and installed("tensorrt") and not lacking:
        gpu = driver.compute_capability()
        return Builder("tensorrt", require("tensorrt", "tensorrt"), gpu, f"for this GPU ({gpu})")
    if not installed(BUILDERS["tensorrt-rtx"]):
        more = f"; `tensorrt` alone needs a GPU, and {lacking}" if installed("tensorrt") else ""
        raise MissingDependency(
            f"`tensorrt_rtx` is not installed, and it builds engines{more}",
            hint="pip install 'storyv-lite[tensorrt-rtx]'",
        )
    reason = f"for every GPU from compute capability {PORTABLE[:-1]} on"
    if target == "tensorrt":
        reason += f"; `tensorrt` was not taken: {lacking or 'it is not installed'}"
    return Builder("tensorrt-rtx", require("tensorrt_rtx", "tensorrt-rtx"), PORTABLE, reason)


def build_engine(builder: Builder, graph: Path, profiles: Profiles = PROFILES) -> bytes:
    """The serialized engine of one graph.

    Raises `ValueError` with the parser's reason when the builder cannot read the graph, `BackendError` when
    it can and still makes no engine.
    """
    trt = builder.module
    heard: list[str] = []
    logger = _logger(trt, heard)
    maker = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # gone where there is no other
    network = maker.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        fault = parser.get_error(0)
        raise ValueError(f"{fault.node_operator() or 'graph'}: {fault.desc()}")
    config = maker.create_builder_config()
    config.builder_optimization_level = OPTIONS["builder_optimization_level"]
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = maker.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        ranges = [_axis_range(tensor, axis, profiles) for axis in range(len(tensor.shape))]
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *(tuple(sizes) for sizes in zip(*ranges, strict=True)))
    config.add_optimization_profile(profile)
    plan = maker.build_serialized_network(network, config)
    if plan is None:
        reason = heard[-1] if heard else "no reason given"
        raise BackendError(
            f"`{builder.name}` made no engine of `{graph}`: {reason}", hint="storyv-lite doctor"
        )
    return bytes(plan)


def add_engines(
    folder: Path,
    builder: Builder,
    earlier: Path | None = None,
    force: bool = False,
    progress: Progress = lambda message: None,
    components: Sequence[Component] = DRAWING,
) -> list[Engine]:
    """Put the engines of the drawing components into the bundle in `folder`, and into its manifest.

    An engine with an equal key, in this bundle or in the one in `earlier`, is used again. Raises
    `OutputError` for one with another key unless `force`, `BackendError` for a graph that the builder cannot
    read; the manifest is then as it was.
    """
    bundle = Bundle.open(folder)
    engines, variants = [], {}
    for component in components:
        source = bundle.variant(component)
        key = make_key(source, builder.name, builder.version, builder.gpu)
        present = engine_variant(bundle, component, builder.name)
        if present and not force and (reason := stale(present.engine or {}, key)):
            raise OutputError(
                f"`{folder}` has an engine of `{component}`, and {reason}",
                hint=f"build it anew in its place with `{rebuild_command(bundle, builder.name)}`",
            )
        file, began = f"{component}/{source.scheme}-{key.digest[:12]}.{builder.name}", time.perf_counter()
        known = _known_file(component, key, bundle, earlier)
        if known is None:
            progress(f"build the engine of {component} ({source.scheme}) with {builder.name}")
            _write(folder / file, _build(builder, bundle, component))
        elif known != folder / file:
            _write(folder / file, known.read_bytes())
        seconds = 0.0 if known else time.perf_counter() - began
        entry = part_entry(folder, file)
        variants[component] = Variant(source.scheme, builder.name, (entry,), {}, engine=key.as_dict())
        engines.append(Engine(component, file, entry.bytes, seconds))
    _record(folder, variants)
    for component in components:  # what no manifest names any more
        old = engine_variant(bundle, component, builder.name)
        if old and old.parts[0].file != variants[component].parts[0].file:
            (folder / old.parts[0].file).unlink()
    return engines


def _known_file(component: Component, key: EngineKey, bundle: Bundle, earlier: Path | None) -> Path | None:
    """The engine of an equal key, its hash verified, in the bundle or in an earlier one."""
    bundles = [bundle]
    if earlier is not None and (earlier / MANIFEST).is_file():
        with suppress(BundleError):  # a damaged one has nothing to give
            bundles.append(Bundle.open(earlier))
    for one in bundles:
        variant = engine_variant(one, component, key.builder)
        if variant and not stale(variant.engine or {}, key):
            return one.file(variant.parts[0].file)
    return None


def _write(target: Path, content: bytes) -> None:
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, target)
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise OutputError(
            f"`{target}` cannot be written: {reason}", hint="copy the bundle to a folder of your own"
        ) from fault
    finally:
        partial.unlink(missing_ok=True)


def _build(builder: Builder, bundle: Bundle, component: Component) -> bytes:
    source = bundle.variant(component)
    if len(source.parts) != 1:
        raise refuse(component, source.scheme, f"it has {len(source.parts)} parts, 1 can be built")
    try:
        return build_engine(builder, bundle.file(source.parts[0].file))
    except ValueError as fault:
        raise refuse(component, source.scheme, str(fault)) from fault


def _record(folder: Path, engines: Mapping[Component, Variant]) -> None:
    """Name the engines in the manifest, each behind the other variants of its component."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for component, variant in engines.items():
        record = manifest["components"][component]
        others = [other for other in record["variants"] if other["backend"] != variant.backend]
        record["variants"] = [*others, variant_entry(variant)]
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "schema"})


def _axis_range(tensor: Any, axis: int, profiles: Profiles) -> tuple[int, int, int]:
    """Smallest, most usual and largest size of one axis; a fixed one has one size."""
    if (size := tensor.shape[axis]) != -1:
        return size, size, size
    name = tensor.get_dimension_name(axis)
    if name not in profiles:
        raise ValueError(f"the axis `{name}` of `{tensor.name}` is free, and no sizes are known for it")
    return profiles[name]


def _logger(trt: Any, heard: list[str]) -> Any:
    """A logger that keeps errors for our message instead of printing them."""

    class Heard(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                heard.append(message.strip().partition("\n")[0])  # nothing may be raised in here

    return Heard()
