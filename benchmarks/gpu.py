"""What a GPU changes: agreement of CUDA with the CPU, seconds per frame, device memory; as one JSON object.

Run `python -m storyv_lite.benchmarks.gpu` on a machine with an NVIDIA GPU, after `pip install '.[cuda]'`; at
most ten minutes. Where CUDA cannot be used the record says "not measured" and why, and the exit code is 0:
nothing was claimed. A GPU that is there and fails is a failure.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from storyv_lite.benchmarks.child import Request
from storyv_lite.benchmarks.command import check_written, failed, heading, typed, write_record
from storyv_lite.benchmarks.measure import PICNIC, run_child, summarize
from storyv_lite.benchmarks.probe import ProbeRequest, used_device_bytes
from storyv_lite.bundle import find_bundle
from storyv_lite.errors import StoryVError
from storyv_lite.runtime.backends.providers import problem

LIMIT_S = 600
SAME_PSNR = 100.0  # what equal pictures count as
COMMAND = "python -m storyv_lite.benchmarks.gpu"
DOCUMENT = Path("benchmarks/results/gpu.json")


def compare_devices(bundle: Path, captions: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Measure one bundle on CUDA and on the CPU, each time in a process of its own.

    `measured` is false, with `reason`, where CUDA cannot be used; `error` says what failed where it can.
    """
    if reason := problem("cuda"):
        return {"measured": False, "reason": f"`cuda` cannot be used: {reason}"}
    end = time.monotonic() + limit_s
    idle = used_device_bytes()
    costs, answers, tensors = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for device in ("cuda", "cpu"):
            file = Path(folder) / f"{device}.safetensors"
            probe = ProbeRequest(str(bundle), tuple(captions), device, str(file))
            found = _timed("storyv_lite.benchmarks.probe", asdict(probe), end)
            if "error" in found:
                return {"measured": False, "error": f"{device}: {found['error']}"}
            answers[device], tensors[device] = found, load_file(file)
            request = Request(str(bundle), tuple(captions), device)
            row = summarize(device, [_timed("storyv_lite.benchmarks.child", asdict(request), end)])
            if row.error:
                return {"measured": False, "error": f"{device}: {row.error}"}
            costs[device] = row.as_dict()
    whole = answers["cuda"]["whole_device_bytes"]
    return {
        "measured": True,
        "agreement": agreement(tensors["cuda"], tensors["cpu"]),
        "providers": {device: found["provider"] for device, found in answers.items()},
        "device_memory": {
            "process_bytes": costs["cuda"]["memory"][
                "device"
            ],  # by the driver, None where it hides processes
            "over_idle_bytes": whole - idle if whole is not None and idle is not None else None,
        },
        "cost": costs,
    }


def agreement(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """How far the devices are apart: largest differences, and the lowest PSNR (dB) of any frame."""
    return {
        "states_max_difference": _difference(ours["states"], theirs["states"]),
        "states_largest": float(np.abs(theirs["states"]).max()),
        "latents_max_difference": _difference(ours["latents"], theirs["latents"]),
        "given_pictures_psnr_db": _lowest_psnr(ours["given"], theirs["given"]),
        "drawn_story_psnr_db": _lowest_psnr(ours["drawn"], theirs["drawn"]),
    }


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB; 100 for equal ones."""
    error = float(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2))
    return SAME_PSNR if error == 0 else min(SAME_PSNR, 10 * float(np.log10(255**2 / error)))


def _lowest_psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return min(psnr(a, b) for a, b in zip(first, second, strict=True))


def _difference(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.abs(first.astype(np.float64) - second.astype(np.float64)).max())


def _timed(module: str, request: Mapping[str, Any], end: float) -> dict[str, Any]:
    return run_child(module, request, max(1.0, end - time.monotonic()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the record, and write it where asked; 1 when a GPU is there and something failed on it."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compare CUDA with the CPU.")
    parser.add_argument("--bundle", help="bundle folder or name [as `storyv-lite render` chooses]")
    parser.add_argument(
        "--write", type=Path, nargs="?", const=DOCUMENT, help=f"write the record [{DOCUMENT}]"
    )
    asked = parser.parse_args(arguments)
    try:
        check_written(asked.write)
        path, _ = find_bundle(asked.bundle)
        result = compare_devices(path.resolve(), PICNIC)
    except StoryVError as fault:
        return failed(fault)
    record = {
        **heading(typed(COMMAND, arguments)),
        "bundle": path.name,
        **result,
    }
    if not record["measured"]:
        print(f"not measured: {record.get('reason') or record['error']}", file=sys.stderr)
    if asked.write:
        write_record(asked.write, record)
        print(f"wrote {asked.write}", file=sys.stderr)
    print(json.dumps(record))
    return int("error" in record)


if __name__ == "__main__":
    sys.exit(main())
