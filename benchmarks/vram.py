"""GPU memory of a story drawn by PyTorch: Llama 2 7B's shape reads, Stable Diffusion 1.5's draws.

Run `python -m storyv_lite.benchmarks.vram FOLDER` on a machine with an NVIDIA GPU; FOLDER needs 17 GB. A
checkpoint with random weights is made where there is none yet, and drawn in every precision by a process of
its own. The peak is that of PyTorch's allocator, weights and activations; what the CUDA libraries take beside
it is in the bytes that the driver counts. Where CUDA cannot be used the record says "not measured" and why.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks import child
from storyv_lite.benchmarks.big_checkpoint import add_size, chosen_size, make_checkpoint
from storyv_lite.benchmarks.big_frame import STORY
from storyv_lite.benchmarks.command import failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import ask_or_raise
from storyv_lite.benchmarks.probe import used_device_bytes
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import BackendError, StoryVError
from storyv_lite.memory import format_bytes

COMMAND = "python -m storyv_lite.benchmarks.vram"
PRECISIONS = ("nf4", "int8", "fp16")
TIMEOUT_S = 1800.0


def draw(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the measured process does: load everything, draw the story, read the counters.

    `idle_bytes` of the request are those in use on the GPU before. Figures of a device are None on the CPU.
    """
    import torch

    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.story import Caption, Story

    pipeline = StoryPipeline.from_checkpoint(request["checkpoint"], request["device"], request["precision"])
    cuda, began = pipeline.backend.device == "cuda", time.perf_counter()
    pipeline.model.residency.language_session()
    loaded, read = time.perf_counter() - began, torch.cuda.memory_allocated() if cuda else None
    frames, begun = [], time.perf_counter()
    for frame in pipeline.draw(Story(tuple(map(Caption, STORY[: request["frames"]]))), 0, request["steps"]):
        seconds = {name: round(ms / 1000, 3) for name, ms in frame.timings_ms.items()}
        frames.append({"total": round(time.perf_counter() - begun, 3), **seconds})
        begun = time.perf_counter()
    used = used_device_bytes() if cuda else None
    idle = request["idle_bytes"]
    return {
        "precision": request["precision"],
        "provider": pipeline.backend.provider,
        "versions": pipeline.backend.versions(),
        "load_language_model_s": round(loaded, 3),
        "language_model_device_bytes": read,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
        "over_idle_bytes": used - idle if used is not None and idle is not None else None,
        "frames": frames,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: one row per precision; seconds are those of the last frame, all loaded and all read."""
    lines = [["language model in", "its weights", "peak of weights and work", "by the driver", "frame"]]
    for row in rows:
        sizes = (row["language_model_device_bytes"], row["peak_allocated_bytes"], row["over_idle_bytes"])
        told = ("-" if size is None else format_bytes(size) for size in sizes)
        lines.append([row["precision"], *told, f"{row['frames'][-1]['total']:.2f} s"])
    return markdown_table(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the checkpoint is made, or is already")
    parser.add_argument("--precision", action="append", help=f"may be repeated [{', '.join(PRECISIONS)}]")
    parser.add_argument("--frames", type=int, default=3, choices=(1, 2, 3), help="of the story [3]")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps of a frame [50]")
    add_size(parser)
    parser.add_argument("--make", action="store_true", help="make the checkpoint and stop")
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        return child.answer(child.costed(draw))
    if given.folder is None:
        parser.error("a folder with 17 GB of room is needed")
    checkpoint, rows = given.folder / "checkpoint", []
    record: dict[str, Any] = {**heading(typed(COMMAND, arguments)), "measured": True}
    try:
        if reason := "" if given.make else _no_cuda():
            record.update(measured=False, reason=reason)
            tell(f"not measured: {reason}")
        else:
            record["parameters"] = make_checkpoint(checkpoint, chosen_size(given))
            for precision in () if given.make else given.precision or PRECISIONS:
                tell(precision)
                rows.append(_measured(checkpoint, precision, given.steps, given.frames))
    except StoryVError as fault:
        return failed(fault)
    if rows:
        print(table(rows))
    record["rows"] = rows
    if given.record:
        write_record(given.record, record)
    print(json.dumps(record))
    return 0


def _measured(checkpoint: Path, precision: str, steps: int, frames: int) -> dict[str, Any]:
    request = {"checkpoint": str(checkpoint), "precision": precision, "steps": steps, "frames": frames}
    request |= {"device": "cuda", "idle_bytes": used_device_bytes()}
    command = [sys.executable, "-m", "storyv_lite.benchmarks.vram", "--step"]
    return ask_or_raise(precision, command, request, TIMEOUT_S)


def _no_cuda() -> str:
    """Why PyTorch cannot draw on a GPU here, empty where it can."""
    from storyv_lite.runtime.backends import open_torch_backend

    try:
        open_torch_backend("cuda", "fp16")
    except BackendError as fault:
        return fault.message
    return ""


if __name__ == "__main__":
    sys.exit(main())
