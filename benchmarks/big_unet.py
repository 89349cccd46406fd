"""A UNet of Stable Diffusion 1.5's shape on a small machine: exported in 16, 8 and 4 bits, and one step.

Run `python -m storyv_lite.benchmarks.big_unet FOLDER`; FOLDER needs 12 GB. Every step is a process of its
own, whose peak of resident memory is printed. Weights are random, so distances say what rounding does to
numbers, not to pictures. Graphs in 8 bits at 32x32 latents and PyTorch in 32 bits take turns.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storyv_lite.benchmarks import child
from storyv_lite.benchmarks.command import failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import ask_or_raise
from storyv_lite.benchmarks.shapes import write_random
from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import StoryVError
from storyv_lite.memory import usable_cores
from storyv_lite.quantization import SCHEMES

MODULE = "storyv_lite.benchmarks.big_unet"
UNET = Component.UNET
CONFIG: Mapping[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
FEEDS = 2  # calls that ranges are taken from
RUNS = 3  # of one step in one process, after another one
ROUNDS = 3  # processes that take turns
TIMEOUT_S = 3600.0
# what is measured: scheme, latents per side, bytes of a part (None: one part)
WAYS: Mapping[str, tuple[str, int, int | None]] = {
    "fp16": ("fp16", 64, 2**29),
    "int4": ("int4", 64, 2**27),
    "int8": ("int8", 64, None),
    "int8-32": ("int8", 32, None),
}
# steps that take turns: their row in the table, the export, whether all of its parts are there at once
TURNS = (
    ("int4", "int4", False),
    ("int4-whole", "int4", True),
    ("int8", "int8", False),
    ("int8-32", "int8-32", False),
)
Request = Mapping[str, Any]


def dimensions(size: int) -> Dimensions:
    """Of a story model around this UNet at `size` latents per side; nothing but the UNet's are used."""
    return Dimensions(8 * size, 4, size, 77, 768, 224, 32000, 4096, 32, 32, 128, 4096, 8, 4)


def feed(size: int, seed: int = 0, batch: int = 1, width: int = 768) -> dict[str, Any]:
    """One call: latents, a timestep, captions' states."""
    random = np.random.default_rng(seed)
    return {
        "sample": random.standard_normal((batch, 4, size, size), dtype=np.float32),
        "timestep": np.array([random.integers(1, 999)]),
        "encoder_hidden_states": random.standard_normal((batch, 77, width), dtype=np.float32),
    }


def make(folder: Path, request: Request) -> dict[str, Any]:
    return {"parameters": write_unet(folder, CONFIG)}


def write_unet(checkpoint: Path, config: Mapping[str, Any]) -> int:
    """A UNet of random weights in a folder for a checkpoint; returns how many there are."""
    from accelerate import init_empty_weights

    from storyv_lite.modeling.checkpoints import new_component

    folder = checkpoint / UNET
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    with init_empty_weights():
        shapes = {name: tuple(t.shape) for name, t in new_component(folder).state_dict().items()}
    return write_random(folder, config, shapes)


def read_unet(checkpoint: Path) -> Any:
    """That UNet as diffusers' module, in float32."""
    import torch
    from accelerate import init_empty_weights

    from storyv_lite.export.weights import of_folder
    from storyv_lite.modeling.checkpoints import new_component

    with init_empty_weights(include_buffers=False):
        unet: Any = new_component(checkpoint / UNET)
    with of_folder(checkpoint / UNET) as weights:
        values = {name: torch.from_numpy(weight.read()) for name, weight in weights.items()}
        unet.load_state_dict(values, assign=True)
    return unet.eval()


def calibrate(folder: Path, request: Request) -> dict[str, Any]:
    from storyv_lite.checkpoint import checkpoint_hash
    from storyv_lite.export.ranges import ranges_by_parts
    from storyv_lite.export.stored_ranges import StoredRanges, save_ranges

    feeds = [feed(64, seed) for seed in range(FEEDS)]
    scheme = SCHEMES["int8"][UNET]
    ranges = ranges_by_parts(UNET, folder, dimensions(64), scheme, feeds, folder / "work")
    save_ranges(folder / "ranges.json", StoredRanges(checkpoint_hash(folder), 64, {UNET: ranges}))
    return {"tensors": len(ranges)}


def export(folder: Path, request: Request) -> dict[str, Any]:
    from storyv_lite.export.stored_ranges import load_ranges
    from storyv_lite.export.stream import stream_component

    name, size, part_bytes = WAYS[request["way"]]
    ranges = load_ranges(folder / "ranges.json").components[UNET] if name == "int8" else None
    place = folder / request["way"]
    scheme = SCHEMES[name][UNET]
    variant = stream_component(
        UNET, folder, dimensions(size), scheme, place, place / "records", part_bytes, ranges
    )
    return {
        "parts": [part.file for part in variant.parts],
        "bytes": sum(part.bytes for part in variant.parts),
        "parity": variant.parity,
    }


def step(folder: Path, request: Request) -> dict[str, Any]:
    from storyv_lite.runtime.backends.ort import OrtSession, session_options
    from storyv_lite.runtime.backends.parts import Parts
    from storyv_lite.runtime.backends.providers import make_session

    _, size, _ = WAYS[request["way"]]
    threads = request["threads"]
    paths = [str(folder / request["way"] / file) for file in request["parts"]]
    loads = [partial(make_session, path, session_options(threads), "cpu") for path in paths]
    session = OrtSession(Parts(loads, ["out_sample"], request["whole"]), UNET)
    answer, seconds = _timed(lambda: session.run(feed(size))["out_sample"], request["runs"])
    np.save(folder / f"{request['row']}.npy", answer)
    return {"seconds": seconds}


def torch_step(folder: Path, request: Request) -> dict[str, Any]:
    """The same step by diffusers in 32 bits."""
    import torch

    torch.set_num_threads(request["threads"])
    unet = read_unet(folder)
    inputs = [torch.from_numpy(array) for array in feed(request["size"]).values()]
    with torch.no_grad():
        answer, seconds = _timed(lambda: unet(*inputs, return_dict=False)[0].numpy(), request["runs"])
    np.save(folder / f"torch-{request['size']}.npy", answer)
    return {"seconds": seconds}


def _timed(call: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """The answer, and the fastest of `runs` calls after one more, in seconds."""
    answer, times = call(), []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return answer, min(times)


STEPS: Mapping[str, Callable[[Path, Request], dict[str, Any]]] = {
    "make": make,
    "calibrate": calibrate,
    "export": export,
    "step": step,
    "torch": torch_step,
}


def measure(folder: Path, threads: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Every step in a process of its own; what a run before it left is used again."""
    from storyv_lite.export.verify import compare

    def child(name: str, **request: Any) -> dict[str, Any]:
        step = f"{name} {request.get('row') or request.get('way') or request.get('size', '')}".rstrip()
        told(step)
        command = [sys.executable, "-m", MODULE, "--step", name]
        asked = {"folder": str(folder), "threads": threads, **request}
        return ask_or_raise(step, command, asked, TIMEOUT_S)

    found: dict[str, Any] = {"threads": threads, "make": child("make"), "calibrate": child("calibrate")}
    exports = {way: child("export", way=way) for way in WAYS}
    steps: dict[str, list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for row, way, whole in TURNS:
            parts = exports[way]["parts"]
            answer = child("step", row=row, way=way, whole=whole, parts=parts, runs=RUNS)
            steps.setdefault(row, []).append(answer)
        steps.setdefault("torch-32", []).append(child("torch", size=32, runs=RUNS))
    steps["torch-64"] = [child("torch", size=64, runs=1)]
    distances = {}
    for row, way, _ in TURNS:
        right = f"torch-{WAYS[way][1]}"
        figures = compare(np.load(folder / f"{row}.npy"), np.load(folder / f"{right}.npy"))
        distances[row] = {"snr_db": figures.snr_db, "cosine": figures.cosine}
    return {**found, "exports": exports, "steps": steps, "distances": distances}


def table(found: Mapping[str, Any]) -> str:
    """Markdown: sizes and peaks of exports, seconds and peaks of steps."""
    wide = 2 * found["make"]["parameters"]
    lines = [
        "| stored as | bytes | of 16 bits | parts | export, peak |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, export in found["exports"].items():
        size = f"{export['bytes'] / 1e6:.0f} MB | {100 * export['bytes'] / wide:.1f} %"
        lines.append(f"| {way} | {size} | {len(export['parts'])} | {export['peak_bytes'] / 1e9:.2f} GB |")
    lines += [
        "",
        f"Ranges for 8 bits: peak {found['calibrate']['peak_bytes'] / 1e9:.2f} GB.",
        "",
        f"| one step, {found['threads']} threads | seconds | peak | SNR to 32 bits |",
        "| --- | --- | --- | --- |",
    ]
    for way, answers in found["steps"].items():
        seconds = min(answer["seconds"] for answer in answers)
        peak = max(answer["peak_bytes"] for answer in answers) / 1e9
        snr = f"{found['distances'][way]['snr_db']:.1f} dB" if way in found["distances"] else "-"
        lines.append(f"| {way} | {seconds:.2f} | {peak:.2f} GB | {snr} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the UNet is made and exported")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        step = STEPS[given.step]
        return child.answer(child.costed(lambda request: step(Path(request["folder"]), request)))
    if given.folder is None:
        parser.error("a folder with 12 GB of room is needed")
    try:
        found = measure(given.folder, given.threads, tell)
    except StoryVError as fault:
        return failed(fault)
    if given.record:
        write_record(given.record, {**heading(typed(f"python -m {MODULE}", arguments)), **found})
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
