"""What one component of a bundle takes in memory: loaded, while it is loaded, while it works; and seconds.

Run `python -m storyv_lite.benchmarks.footprint --bundle BUNDLE`: a process per component, which reads its own
counters; prints a table and JSON. The constants of `runtime/footprint.py` come from it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storyv_lite.benchmarks.child import answer
from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.measure import ask
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.components import Component
from storyv_lite.errors import StoryVError
from storyv_lite.memory import (
    format_bytes,
    give_back_freed_memory,
    resident_memory,
    return_freed_memory,
    take_peak,
)

COMMAND = "python -m storyv_lite.benchmarks.footprint"
GRAPHS = tuple(component for component in Component if component is not Component.TOKEN_EMBEDDING)
READ_TOKENS = 80
CHILD = "--child"  # the request is on stdin


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Load and run one component. Bytes above what the process took before; seconds of loading."""
    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.model import Model

    return_freed_memory()
    component = Component(request["component"])
    bundle = Bundle.open(Path(request["bundle"]), verify=False)
    model = Model(bundle, open_backend("cpu", request["threads"]))
    small = Component.MAPPER if component is Component.FUSION else Component.FUSION
    for _ in range(2):  # the library's own code and tables, which stay
        work_of(model, small, request)()
    model.close()
    give_back_freed_memory()
    base = _settled()
    began = time.perf_counter()
    if component is Component.LANGUAGE_MODEL:
        model.language  # noqa: B018  # it is loaded when it is first looked at
    else:
        model.session(component)
    seconds = time.perf_counter() - began
    loading, loaded = take_peak() or 0, _settled()
    work = work_of(model, component, request)
    worked = []
    for _ in range(3):
        work()
        worked.append(take_peak() or 0)
    after = _settled()
    model.close()
    give_back_freed_memory()
    part = bundle.variant(component)
    return {
        "component": str(component),
        "scheme": part.scheme,
        "bytes": sum(one.bytes for one in part.parts),
        "told": dict(part.work or {}),
        "loading": max(loading, loaded) - base,
        "loaded": loaded - base,
        "working": max(worked) - base,
        "after": after - base,
        "left": _settled() - base,
        "seconds": seconds,
    }


def work_of(model: Any, component: Component, request: dict[str, Any]) -> Callable[[], Any]:
    """One call of a component on noise; guidance as a batch of `batch`, decoding in tiles of `tile`."""
    dims, lot = model.dims, np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return lot.standard_normal(shape).astype(np.float32)

    states = noise(request["batch"], dims.text_tokens, dims.cross_attention_dim)
    sample = noise(request["batch"], dims.latent_channels, dims.latent_size, dims.latent_size)
    pixels = noise(2, 3, dims.vision_image_size, dims.vision_image_size)
    fused = {
        "hidden_states": states[:1],
        "image_embeds": noise(2, dims.cross_attention_dim),
        "positions": np.array([1, 3]),
    }
    evaluated = {"sample": sample, "timestep": np.array([500]), "encoder_hidden_states": states}
    run = {Component.CHARACTER_ENCODER: {"pixel_values": pixels}, Component.FUSION: fused}
    if component in run | {Component.UNET: {}}:
        feed = run.get(component, evaluated)
        return lambda: model.session(component).run(feed)
    if component is Component.LANGUAGE_MODEL:
        cache, rows = model.language.new_cache(READ_TOKENS), noise(1, READ_TOKENS, dims.hidden_size)

        def read() -> None:
            cache.clear()
            cache.append(model.language.session, rows)

        return read
    return {
        Component.TEXT_ENCODER: lambda: model.text_states("Milo is waving."),
        Component.MAPPER: lambda: model.map(noise(dims.image_tokens, dims.hidden_size)),
        Component.VISION_ENCODER: lambda: model.look(np.zeros((dims.image_size,) * 2 + (3,), np.uint8)),
        Component.VAE_DECODER: lambda: model.decode(sample[:1], request["tile"]),
    }[component]


def _settled() -> int:
    """Bytes resident now; the peak counts from here."""
    take_peak()
    return resident_memory().now or 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="What each component takes.")
    parser.add_argument("--bundle", default=None, help="folder or name [as `render` chooses]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2, help="of the UNet: 2 is guidance in one pass [2]")
    parser.add_argument("--tile", type=int, default=0, help="of the decoder, 0 for none [0]")
    parser.add_argument("--component", choices=GRAPHS, action="append", help="one of them [all]")
    asked = parser.parse_args(arguments)
    try:
        path, _ = find_bundle(asked.bundle)
    except StoryVError as fault:
        return failed(fault)
    request = {"bundle": str(path), "threads": asked.threads, "batch": asked.batch, "tile": asked.tile}
    command = [sys.executable, "-m", "storyv_lite.benchmarks.footprint", CHILD]
    found = [
        ask(command, json.dumps({**request, "component": component}))
        for component in asked.component or GRAPHS
    ]
    errors = [one["error"] for one in found if "error" in one]
    if errors:
        print(f"error: {errors[0]}", file=sys.stderr)
        return 1
    sizes = ("bytes", "loading", "loaded", "working", "after", "left")
    rows = [[one["component"], one["scheme"], *(format_bytes(one[n]) for n in sizes)] for one in found]
    rows = [[*row, f"{one['seconds']:.3f}"] for row, one in zip(rows, found, strict=True)]
    print(markdown_table([["component", "scheme", *sizes, "seconds to load"], *rows]))
    print(json.dumps({"bundle": path.name, "components": found}))
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == [CHILD]:
        sys.exit(answer(probe))
    sys.exit(main())
