"""The measured process: opens one bundle, draws one story several times, prints what it cost as JSON.

Run as `python -m storyv_lite.benchmarks.child`, the request as JSON on stdin; the last line of stdout is the
answer. It reads its own counters: from outside, a child's peak begins at its parent's size. The first round
loads every component when it is first needed, the later rounds find them loaded. Writes no file.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from storyv_lite.errors import StoryVError

if TYPE_CHECKING:
    from storyv_lite.bundle import Bundle

PHASES = ("look", "read", "condition", "draw", "decode")
CONDITION = ("portraits", "map", "text")  # what the pipeline times apart and a reader wants as one


@dataclass(frozen=True)
class Request:
    """What to measure; `launched` is the clock (`time.time()`) when the process was started."""

    bundle: str
    captions: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None
    rounds: int = 2
    launched: float | None = None


def measure(request: Request) -> dict[str, Any]:
    """Draw and time. Seconds, bytes; a counter the system does not offer is None."""
    from pathlib import Path

    from storyv_lite.memory import device_memory, resident_memory
    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.story import Caption, Story

    launched = request.launched or time.time()
    story = Story(tuple(map(Caption, request.captions)))
    pipeline = StoryPipeline.from_bundle(Path(request.bundle), request.device, request.threads)
    ready = time.time() - launched
    cuda = pipeline.backend.device == "cuda"
    rounds, video = [], []
    for _ in range(request.rounds):
        frames, drawing = [], pipeline.draw(story)
        start = time.perf_counter()
        for frame in drawing:
            total = time.perf_counter() - start
            frames.append({"total": total, **fold_phases(frame.timings_ms), "tokens": frame.tokens_read})
            if cuda:
                video.append(device_memory())
            start = time.perf_counter()
        rounds.append(frames)
    settings = pipeline.settings()
    return {
        "bundle": describe(pipeline.bundle),
        "settings": asdict(settings),
        "device": pipeline.backend.device,
        "provider": pipeline.backend.provider,
        "versions": pipeline.backend.versions(),
        "ready_s": ready,
        "rounds": rounds,
        "memory": asdict(resident_memory()),
        "device_bytes": max((used for used in video if used is not None), default=None),
    }


def fold_phases(timings_ms: dict[str, float]) -> dict[str, float]:
    """The pipeline's milliseconds per phase as seconds, everything that makes conditioning in one."""
    folded: dict[str, float] = {}
    for phase, milliseconds in timings_ms.items():
        name = "condition" if phase in CONDITION else phase
        folded[name] = folded.get(name, 0.0) + milliseconds / 1000
    return folded


def describe(bundle: "Bundle") -> dict[str, Any]:
    """What lies on the disk: bytes in all and per component, and what a token of context will take."""
    from storyv_lite.runtime.context_size import bytes_per_token

    dims = bundle.model.dimensions
    components = {}
    for component, variants in bundle.components.items():
        first = variants[0]
        size = sum(part.bytes for part in first.parts)
        components[str(component)] = {"scheme": first.scheme, "bytes": size, "parts": len(first.parts)}
    return {
        "name": bundle.name,
        "sha256": bundle.sha256,
        "bytes": bundle.total_bytes,
        "components": components,
        "kv_bytes_per_token": bytes_per_token(dims, "fp32"),
    }


def costed(work: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`work`, whose answers also say the most bytes the process held, and the seconds it took."""

    def whole(request: dict[str, Any]) -> dict[str, Any]:
        from storyv_lite.memory import resident_memory

        began = time.perf_counter()
        result = work(request)
        return {
            **result,
            "peak_bytes": resident_memory().peak,
            "all_seconds": time.perf_counter() - began,
        }

    return whole


def answer(work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Run `work` on the request read from stdin and print its answer, or what went wrong; the exit code."""
    try:
        result = work(json.loads(sys.stdin.read()))
    except StoryVError as fault:
        result = {"error": fault.message, "kind": type(fault).__name__, "hint": fault.hint}
        print(json.dumps(result))
        return fault.exit_code
    except MemoryError:
        print(json.dumps({"error": "memory ran out", "kind": "MemoryError", "hint": ""}))
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(answer(lambda request: measure(Request(**request))))
