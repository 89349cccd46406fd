"""TensorRT engines: seconds to build and bytes; on a GPU also their error and speed beside other ways to run.

Run `python -m storyv_lite.benchmarks.engines [--shape all]`: the drawing components of the newest checkpoint,
and a UNet of Stable Diffusion 1.5's shape, 860 million random weights in float16 (needs 6 GB of disk). Every
engine is built in a process of its own, which reads its own peak of memory. Where there is no GPU, nothing is
compared: the record says why.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks import big_unet, child
from storyv_lite.benchmarks.command import check_written, failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import ask_or_raise
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.engine import PROFILES
from storyv_lite.errors import StoryVError
from storyv_lite.export.engines import Builder, Profiles, build_engine, choose_builder
from storyv_lite.memory import format_bytes
from storyv_lite.optional import require
from storyv_lite.quantization import DRAWING, SCHEMES
from storyv_lite.runtime.backends import driver

COMMAND = "python -m storyv_lite.benchmarks.engines"
RUNS, WARM = 20, 5
LIBRARIES = ("torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
TIMEOUT_S = 3 * 3600.0

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One graph in float16 between float32 borders, the float32 module it came from, and what it is fed."""

    name: str
    graph: Path
    module: Callable[[], Any]  # loads what answers in PyTorch; its parameters in float32
    inputs: Tensors  # in the order that the module takes them; a batch of two, as guidance needs
    profiles: Profiles = field(default_factory=lambda: PROFILES)

    @property
    def engine(self) -> Path:
        """Where its engine is written."""
        return self.graph.with_suffix(".engine")


def checkpoint_cases(checkpoint: Path, folder: Path, components: Sequence[Component] = DRAWING) -> list[Case]:
    """Drawing components of a checkpoint, written as `storyv-lite export --target tensorrt` does."""
    from storyv_lite.export.capture import GRAPH, capture, quiet, save_graph
    from storyv_lite.export.halve import halve
    from storyv_lite.export.simplify import shorten
    from storyv_lite.modeling.checkpoints import read_checkpoint
    from storyv_lite.modeling.components import build

    dims = Dimensions(**read_checkpoint(checkpoint)["dimensions"])
    cases = []
    for component in components:
        with quiet():
            module = build(component, checkpoint, dims)
        save_graph(shorten(halve(capture(module, component, dims))), folder / component)
        graph, inputs = folder / component / GRAPH, random_inputs(component, dims)
        cases.append(Case(component, graph, lambda module=module: module, inputs))  # type: ignore[misc]
    return cases


def unet_case(config: Mapping[str, Any], place: Path) -> Case:
    """A UNet of this configuration with random weights, written in float16 one tensor at a time; sides of
    latents from half its size on are free. What a run before it left in `place` is used again.
    """
    from storyv_lite.export.capture import GRAPH
    from storyv_lite.export.stream import stream_component

    size, width = int(config["sample_size"]), int(config["cross_attention_dim"])
    dims = replace(big_unet.dimensions(size), cross_attention_dim=width)
    big_unet.write_unet(place, config)
    written, scheme = place / "half", SCHEMES["half"][Component.UNET]
    records = written / "records"
    stream_component(Component.UNET, place, dims, scheme, written, records, part_bytes=None, any_size=True)
    sides = (size // 2, size, size)
    profiles = {**PROFILES, "height": sides, "width": sides}
    name = f"unet, {size // 2} to {size} cells a side"
    inputs = big_unet.feed(size, batch=2, width=width)
    graph = written / Component.UNET / GRAPH
    return Case(name, graph, lambda: _answering(big_unet.read_unet(place)), inputs, profiles)


def _answering(unet: Any) -> Any:
    """diffusers' UNet as a module that takes and gives float32 tensors, whatever its weights are."""
    import torch

    class Answering(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
            dtype = next(self.unet.parameters()).dtype
            states = encoder_hidden_states.to(dtype)
            return self.unet(sample.to(dtype), timestep, states, return_dict=False)[0].float()

    return Answering()


def random_inputs(component: Component, dims: Dimensions) -> dict[str, NDArray[Any]]:
    """Normal noise for every input of a drawing component, the middle timestep, a batch of two."""
    random = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for spec in signature(component, dims).inputs:
        shape = tuple(2 if axis == "batch" else int(axis) for axis in spec.axes)
        noise = random.standard_normal(shape).astype(np.float32)
        found[spec.name] = np.full(shape, 500, dtype=np.int64) if spec.dtype == "int64" else noise
    return found


def build(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the measured process does: one graph becomes one file with its engine."""
    builder = choose_builder()
    began, worked = time.perf_counter(), time.process_time()
    content = build_engine(builder, Path(request["graph"]), request["profiles"])
    seconds = {"build_s": time.perf_counter() - began, "build_cpu_s": time.process_time() - worked}
    Path(request["engine"]).write_bytes(content)
    return {name: round(value, 2) for name, value in seconds.items()}  # more than work on a busy machine


def measure(case: Case, builder: Builder) -> dict[str, Any]:
    """Build one engine in a process of its own; on a GPU compare it with ONNX Runtime's CUDA and PyTorch.

    Raises `BackendError` when there is none in the end.
    """
    from storyv_lite.export.capture import DATA

    command = [sys.executable, "-m", "storyv_lite.benchmarks.engines", "--build"]
    request = {"graph": str(case.graph), "engine": str(case.engine), "profiles": dict(case.profiles)}
    built = ask_or_raise(f"engine of {case.name}", command, request, TIMEOUT_S)
    files = [file for file in (case.graph, case.graph.with_name(DATA)) if file.is_file()]
    row: dict[str, Any] = {
        "component": case.name,
        "graph_bytes": sum(file.stat().st_size for file in files),
        "engine_bytes": case.engine.stat().st_size,
        "profiles": dict(case.profiles),
        **{name: built[name] for name in ("build_s", "build_cpu_s", "peak_bytes")},
    }
    if reason := driver.problem():
        return {**row, "compared": False, "reason": reason}
    return {**row, "compared": True, "ways": compare_ways(case, case.engine.read_bytes(), builder)}


def compare_ways(case: Case, content: bytes, builder: Builder) -> dict[str, dict[str, float]]:
    """Each way to run it on this GPU: error against float32 on the CPU, and milliseconds, numpy to numpy."""
    import torch

    from storyv_lite.export.verify import compare
    from storyv_lite.runtime.backends.ort import session_options
    from storyv_lite.runtime.backends.providers import make_session
    from storyv_lite.runtime.backends.trt import TrtSession

    tensors = [torch.from_numpy(array) for array in case.inputs.values()]
    module = case.module()
    with torch.no_grad():
        reference = module(*tensors).numpy()
    device = driver.Device()
    engine = TrtSession(builder.module, content, case.name, device, driver.Buffer(device))
    cuda = make_session(str(case.graph), session_options(1), "cuda")
    ways: dict[str, Callable[[], NDArray[Any]]] = {
        builder.name: lambda: next(iter(engine.run(case.inputs).values())),
        "onnxruntime-cuda": lambda: np.asarray(cuda.run(None, dict(case.inputs))[0]),
    }
    if torch.cuda.is_available():
        module = _halved_on_gpu(module)

        def pytorch() -> NDArray[Any]:
            given = [t.cuda().half() if t.is_floating_point() else t.cuda() for t in tensors]
            with torch.no_grad():
                answer: NDArray[Any] = module(*given).float().cpu().numpy()
            return answer

        ways["pytorch-fp16"] = pytorch
    found = {}
    for name, way in ways.items():
        parity = compare(way(), reference)
        found[name] = {"snr_db": parity.snr_db, "max_abs_error": parity.max_abs_error, "ms": _median(way)}
    engine.close()
    return found


def _halved_on_gpu(module: Any) -> Any:
    """The module in float16 on the GPU, with the tensors that it keeps as plain attributes."""
    import torch

    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor):
                setattr(part, name, value.half().cuda())
    return module.half().cuda()


def _median(way: Callable[[], Any]) -> float:
    times = []
    for _ in range(WARM + RUNS):
        began = time.perf_counter()
        way()
        times.append(time.perf_counter() - began)
    return round(1000 * float(np.median(times[WARM:])), 3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per engine and the record as JSON; write it where asked."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Build and compare TensorRT engines.")
    parser.add_argument("--shape", choices=("toon", "sd15", "all"), default="toon")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder [the newest]")
    parser.add_argument("--folder", type=Path, help="where graphs and engines are written and stay [nowhere]")
    parser.add_argument("--write", type=Path, help="write the record here")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.build:
        return child.answer(child.costed(build))
    try:
        check_written(asked.write)
        for module in ("torch", "diffusers", "onnx", "onnxscript"):
            require(module, "export")
        builder = choose_builder()
        rows = []
        with tempfile.TemporaryDirectory() as name:
            for case in _cases(asked.shape, asked.checkpoint, asked.folder or Path(name)):
                rows.append(measure(case, builder))
                tell(_line(rows[-1]))
    except StoryVError as fault:
        return failed(fault)
    record = {
        **heading(typed(COMMAND, arguments), libraries=LIBRARIES),
        "builder": {"name": builder.name, "version": builder.version, "reason": builder.reason},
        "engines": rows,
    }
    if asked.write:
        write_record(asked.write, record)
    print(json.dumps(record))
    return 0


def _cases(shape: str, checkpoint: Path | None, folder: Path) -> Iterator[Case]:
    if shape != "sd15":
        from storyv_lite.export.assemble import newest_checkpoint

        yield from checkpoint_cases(checkpoint or newest_checkpoint(Path.cwd()), folder / "toon")
    if shape != "toon":
        yield unet_case(big_unet.CONFIG, folder / "sd15")


def _line(row: Mapping[str, Any]) -> str:
    size = f"{format_bytes(row['engine_bytes'])} from a graph of {format_bytes(row['graph_bytes'])}"
    seconds = f"{row['build_s']} s ({row['build_cpu_s']} of work)"
    line = f"{row['component']}: built in {seconds}, peak {format_bytes(row['peak_bytes'])}, {size}"
    if not row["compared"]:
        return f"{line}; not compared: {row['reason']}"
    ways = (f"{name} {way['ms']} ms, {way['snr_db']:.1f} dB" for name, way in row["ways"].items())
    return f"{line}; {'; '.join(ways)}"


if __name__ == "__main__":
    sys.exit(main())
