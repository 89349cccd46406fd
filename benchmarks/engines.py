"""TensorRT engines: seconds to build and bytes; on a GPU also their error and speed beside other ways to run.

Run `python -m storyv_lite.benchmarks.engines`: the drawing components of the newest checkpoint; with `--shape
sd15` a UNet of Stable Diffusion 1.5's shape, 860 million random weights in float16 (needs 8 GB of memory and
many minutes). Where there is no GPU, engines are built and nothing is compared: the record says why.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import failed, heading, write_record
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import StoryVError
from storyv_lite.export.engines import Builder, build_engine, choose_builder
from storyv_lite.memory import format_bytes, resident_memory
from storyv_lite.optional import require
from storyv_lite.quantization import DRAWING
from storyv_lite.runtime.backends import driver

COMMAND = "python -m storyv_lite.benchmarks.engines"
RUNS, WARM = 20, 5
LIBRARIES = ("torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
# of UNet2DConditionModel; everything else is the class's default, which is Stable Diffusion 1's
SD15: Mapping[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """One graph in float16 between float32 borders, the float32 module it came from, and what it is fed."""

    name: str
    graph: Path
    module: Any  # answers in PyTorch; its parameters in float32
    inputs: Tensors  # in the order that the module takes them; a batch of two, as guidance needs


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
        graph = capture(module, component, dims)
        save_graph(shorten(halve(graph)), folder / component)
        cases.append(Case(component, folder / component / GRAPH, module, random_inputs(component, dims)))
    return cases


def unet_case(config: Mapping[str, Any], folder: Path) -> Case:
    """A UNet of this configuration with random weights, written in float16 by the exporter of torch.export.

    The exporter of `capture` keeps a whole graph in one message, which may hold 2 GB at most.
    """
    import torch
    from diffusers import UNet2DConditionModel

    from storyv_lite.export.capture import GRAPH, quiet

    class Half(torch.nn.Module):
        """Float32 at the borders; the model itself keeps the embedding of the timestep wide."""

        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
            dtype = next(self.unet.parameters()).dtype
            states = encoder_hidden_states.to(dtype)
            return self.unet(sample.to(dtype), timestep, states, return_dict=False)[0].float()

    with quiet():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**config).eval().requires_grad_(False)
    size, width = int(config["sample_size"]), int(config["cross_attention_dim"])
    random = np.random.default_rng(0)
    inputs: dict[str, NDArray[Any]] = {
        "sample": random.standard_normal((2, unet.config.in_channels, size, size)).astype(np.float32),
        "timestep": np.array([500], dtype=np.int64),
        "encoder_hidden_states": random.standard_normal((2, 77, width)).astype(np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    batch = torch.export.Dim("batch", min=1, max=2)
    with quiet():
        torch.onnx.export(
            Half(unet.half()),
            tuple(map(torch.from_numpy, inputs.values())),
            folder / GRAPH,
            dynamo=True,
            input_names=list(inputs),
            output_names=["out_sample"],
            dynamic_shapes={"sample": {0: batch}, "timestep": None, "encoder_hidden_states": {0: batch}},
            external_data=True,
        )
    return Case("unet", folder / GRAPH, Half(unet.float()), inputs)


def random_inputs(component: Component, dims: Dimensions) -> dict[str, NDArray[Any]]:
    """Normal noise for every input of a drawing component, the middle timestep, a batch of two."""
    random = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for spec in signature(component, dims).inputs:
        shape = tuple(2 if axis == "batch" else int(axis) for axis in spec.axes)
        noise = random.standard_normal(shape).astype(np.float32)
        found[spec.name] = np.full(shape, 500, dtype=np.int64) if spec.dtype == "int64" else noise
    return found


def measure(case: Case, builder: Builder) -> dict[str, Any]:
    """Build one engine; on a GPU also compare it with ONNX Runtime's CUDA and with PyTorch."""
    began, worked = time.perf_counter(), time.process_time()
    content = build_engine(builder, case.graph)
    data = case.graph.with_name(f"{case.graph.name}.data")
    row: dict[str, Any] = {
        "component": case.name,
        "graph_bytes": case.graph.stat().st_size + (data.stat().st_size if data.is_file() else 0),
        "engine_bytes": len(content),
        "build_s": round(time.perf_counter() - began, 2),
        "build_cpu_s": round(time.process_time() - worked, 2),  # less than the above on a busy machine
        "peak_bytes": resident_memory().peak,
    }
    if reason := driver.problem():
        return {**row, "compared": False, "reason": reason}
    return {**row, "compared": True, "ways": compare_ways(case, content, builder)}


def compare_ways(case: Case, content: bytes, builder: Builder) -> dict[str, dict[str, float]]:
    """Each way to run it on this GPU: error against float32 on the CPU, and milliseconds, numpy to numpy."""
    import torch

    from storyv_lite.export.verify import compare
    from storyv_lite.runtime.backends.ort import session_options
    from storyv_lite.runtime.backends.providers import make_session
    from storyv_lite.runtime.backends.trt import TrtSession

    tensors = [torch.from_numpy(array) for array in case.inputs.values()]
    with torch.no_grad():
        reference = case.module(*tensors).numpy()
    device = driver.Device()
    engine = TrtSession(builder.module, content, case.name, device, driver.Buffer(device))
    cuda = make_session(str(case.graph), session_options(1), "cuda")
    ways: dict[str, Callable[[], NDArray[Any]]] = {
        builder.name: lambda: next(iter(engine.run(case.inputs).values())),
        "onnxruntime-cuda": lambda: np.asarray(cuda.run(None, dict(case.inputs))[0]),
    }
    if torch.cuda.is_available():
        module = _halved_on_gpu(case.module)

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
    parser.add_argument("--shape", choices=("toon", "sd15"), default="toon")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder [the newest]")
    parser.add_argument("--write", type=Path, help="write the record here")
    asked = parser.parse_args(arguments)
    try:
        for module in ("torch", "diffusers", "onnx", "onnxscript"):
            require(module, "export")
        builder = choose_builder()
        with tempfile.TemporaryDirectory() as name:
            if asked.shape == "sd15":
                cases = [unet_case(SD15, Path(name))]
            else:
                from storyv_lite.export.assemble import newest_checkpoint

                cases = checkpoint_cases(asked.checkpoint or newest_checkpoint(Path.cwd()), Path(name))
            rows = []
            for case in cases:
                rows.append(measure(case, builder))
                print(_line(rows[-1]), file=sys.stderr)
    except StoryVError as fault:
        return failed(fault)
    record = {
        **heading(f"{COMMAND} --shape {asked.shape}", libraries=LIBRARIES),
        "builder": {"name": builder.name, "version": builder.version, "reason": builder.reason},
        "engines": rows,
    }
    if asked.write:
        write_record(asked.write, record)
    print(json.dumps(record))
    return 0


def _line(row: Mapping[str, Any]) -> str:
    size = f"{format_bytes(row['engine_bytes'])} from a graph of {format_bytes(row['graph_bytes'])}"
    line = f"{row['component']}: built in {row['build_s']} s ({row['build_cpu_s']} of work), {size}"
    if not row["compared"]:
        return f"{line}; not compared: {row['reason']}"
    ways = (f"{name} {way['ms']} ms, {way['snr_db']:.1f} dB" for name, way in row["ways"].items())
    return f"{line}; {'; '.join(ways)}"


if __name__ == "__main__":
    sys.exit(main())
