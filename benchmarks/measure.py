"""Measuring bundles: a child process per measurement, taken in turns, and what their answers say together.

Knows processes and statistics; not how a story is drawn (`child`) nor how a figure is shown (`report`).
What does not run is a row that says so.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import storyv_lite
from storyv_lite.benchmarks.child import PHASES, Request
from storyv_lite.errors import BackendError

TIMEOUT_S = 1800
PICNIC = (
    "Milo is standing in the meadow with a cake.",
    "Luna joins him.",
    "She is holding a balloon.",
    "He is jumping up and down.",
    "They are waving in the meadow.",
)


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    p90: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None when there are no values; the 90th percentile lies between two values where it must."""
        if not values:
            return None
        return cls(float(np.median(values)), float(np.percentile(values, 90)), len(values))


@dataclass(frozen=True)
class Row:
    """What one bundle costs; `seconds` and `bytes` by name, `error` alone when it could not be measured."""

    bundle: str  # as it was asked for
    found: Mapping[str, Any] = field(default_factory=dict)  # what `child.describe` says of it
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""
    provider: str = ""
    seconds: Mapping[str, Spread] = field(default_factory=dict)
    phases: Mapping[str, Spread] = field(default_factory=dict)  # of steady frames, in seconds
    memory: Mapping[str, int | None] = field(default_factory=dict)  # the largest of all children, in bytes
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def repeat_captions(captions: Sequence[str], frames: int | None) -> tuple[str, ...]:
    """A story of exactly `frames` captions: cut, or begun again from the start; None leaves it as it is."""
    count = len(captions) if frames is None else frames
    return tuple(captions[index % len(captions)] for index in range(count))


def measure_bundles(
    bundles: Mapping[str, Path],
    captions: Sequence[str],
    repeat: int = 3,
    device: str = "cpu",
    threads: int | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """One row per bundle (name as asked for -> folder), from `repeat` processes each.

    Bundles take turns, so that a machine that gets slower or faster does so for all of them.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in bundles}
    for run in range(repeat):
        for name, path in bundles.items():
            if any("error" in answer for answer in answers[name]):
                continue
            told(f"{name}: run {run + 1} of {repeat}")
            request = Request(str(path.resolve()), tuple(captions), device, threads)
            answers[name].append(run_child("storyv_lite.benchmarks.child", asdict(request)))
    rows = [summarize(name, found) for name, found in answers.items()]
    # a message may name the folder; a report names the bundle as it was asked for
    return [
        replace(row, error=row.error.replace(str(bundles[row.bundle].resolve()), row.bundle)) for row in rows
    ]


def run_child(module: str, request: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run a module of ours in a process of its own; its answer, or `{"error": ..., "kind": ...}`."""
    command = [sys.executable, "-m", module]
    return ask(command, json.dumps({**request, "launched": time.time()}), timeout_s)


def ask(command: Sequence[str], request: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Run a command that answers with JSON in its last line; a death without an answer becomes one."""
    root = str(Path(storyv_lite.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        child = subprocess.run(
            command,
            input=request,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {timeout_s:g} s", "kind": "Timeout"}
    last = (child.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and ("error" in answer or child.returncode == 0):
        return answer
    return {
        "error": _why(child.returncode, child.stderr),
        "kind": "Killed" if child.returncode < 0 else "Crash",
    }


def ask_or_raise(
    what: str, command: Sequence[str], request: Mapping[str, Any], timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """`ask` where there is no going on without an answer; `what` names the step.

    Raises `BackendError` with the reason and the hint of the process that failed.
    """
    answer = ask(command, json.dumps(request), timeout_s)
    if "error" in answer:
        raise BackendError(f"`{what}` failed: {answer['error']}", answer.get("hint", ""))
    return answer


def summarize(name: str, answers: Sequence[Mapping[str, Any]]) -> Row:
    """Fold the answers of one bundle's children into a row; one failure makes it a failed row."""
    for answer in answers:
        if "error" in answer:
            return Row(name, error=str(answer["error"]))
    first = [answer["rounds"][0] for answer in answers]
    later = [frames for answer in answers for frames in answer["rounds"][1:]]
    steady = [frame for frames in later for frame in frames[1:]]
    seconds = {
        "ready": [answer["ready_s"] for answer in answers],
        "cold_start": [a["ready_s"] + frames[0]["total"] for a, frames in zip(answers, first, strict=True)],
        "story": [
            a["ready_s"] + sum(frame["total"] for frame in frames)
            for a, frames in zip(answers, first, strict=True)
        ],
        "cold_frame": [frames[0]["total"] for frames in first],
        "first_frame": [frames[0]["total"] for frames in later],
        "steady_frame": [frame["total"] for frame in steady],
    }
    phases = {phase: [frame[phase] for frame in steady if phase in frame] for phase in PHASES}
    kinds = ("peak", "anonymous", "file")
    memory = {kind: _largest(answer["memory"][kind] for answer in answers) for kind in kinds}
    return Row(
        bundle=name,
        found=answers[0]["bundle"],
        settings=answers[0]["settings"],
        device=answers[0]["device"],
        provider=answers[0]["provider"],
        seconds=_spreads(seconds),
        phases=_spreads(phases),
        memory={**memory, "device": _largest(answer["device_bytes"] for answer in answers)},
    )


def _spreads(values: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    spreads = {name: Spread.of(found) for name, found in values.items()}
    return {name: spread for name, spread in spreads.items() if spread is not None}


def _largest(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _why(returncode: int, stderr: str) -> str:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"ended with exit code {returncode} and no answer"
