"""A language model of 7 B weights on a small machine: exported in 4 bits, killed on the way, read.

Run `python -m storyv_lite.benchmarks.big_language FOLDER`; FOLDER needs 20 GB, for each model is removed when
it is measured. Every step is a process of its own, whose peak of resident memory is printed: the export,
which is killed after half of its parts and begun again; reading a frame behind the frames before it with the
cache, as a story is read and once more with products in float32; and the reference, float32 layers one at a
time without a cache. Weights are random; fails when the parity gate of 4 bits would.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks import child
from storyv_lite.benchmarks.command import failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import ask_or_raise
from storyv_lite.benchmarks.shapes import write_random
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import StoryVError
from storyv_lite.manifest import Part
from storyv_lite.memory import usable_cores
from storyv_lite.quantization import Method, QuantScheme

MODULE = "storyv_lite.benchmarks.big_language"
LAYERS = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        **LAYERS,
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 50272,
        "ffn_dim": 16384,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 4096,
        **LAYERS,
    },
}
INTO_RESIDUAL = ("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")
HISTORY, FRAME = 140, 70  # tokens behind which a frame is read, and of the frame
INPUTS = 1.0  # root mean square of embeddings; of what the default model reads it is 0.93
FLOAT32 = 1  # accuracy level of products that round nothing but their weights
INT4 = QuantScheme("int4-block32", Method.BLOCK4, accuracy_level=4)
LLM = Component.LANGUAGE_MODEL
TIMEOUT_S = 3600.0
Floats = NDArray[np.float32]


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Of a story model around this language model; nothing but the language model's are used."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    layers, positions = config["num_hidden_layers"], config["max_position_embeddings"]
    return Dimensions(
        512,
        4,
        64,
        77,
        768,
        224,
        config["vocab_size"],
        hidden,
        layers,
        heads,
        hidden // heads,
        positions,
        8,
        4,
    )


def inputs(config: Mapping[str, Any]) -> Floats:
    """Embeddings of the history and the frame, (1, tokens, hidden)."""
    shape = (1, HISTORY + FRAME, config["hidden_size"])
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32) * np.float32(INPUTS)


def make(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    from accelerate import init_empty_weights

    from storyv_lite.modeling.checkpoints import new_component

    component = folder / LLM
    component.mkdir(parents=True, exist_ok=True)
    (component / "config.json").write_text(json.dumps(config))
    with init_empty_weights():
        shapes = {name: tuple(t.shape) for name, t in new_component(component).state_dict().items()}
    layers = config["num_hidden_layers"]
    count = write_random(component, config, shapes, ("lm_head.weight",), INTO_RESIDUAL, layers)
    return {"parameters": count}


def export(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    from storyv_lite.export.stream import stream_component

    told: list[str] = []
    out, records = folder / "bundle", folder / "records"
    variant = stream_component(LLM, folder, dimensions(config), INT4, out, records, progress=told.append)
    return {
        "parts": list(map(asdict, variant.parts)),
        "bytes": sum(part.bytes for part in variant.parts),
        "parts_written": len(told),
        "weights_snr_db": variant.parity["weights_4_bits_snr_db"],
    }


def read(folder: Path, config: Mapping[str, Any], parts: list[Part], level: int) -> dict[str, Any]:
    """Read a frame behind the frames before it; products compute at this accuracy `level`."""
    from storyv_lite.runtime.backends.ort import OrtLanguageSession, session_options
    from storyv_lite.runtime.backends.parts import Parts
    from storyv_lite.runtime.backends.providers import make_session
    from storyv_lite.runtime.kv_cache import KVCache

    threads = usable_cores()
    paths = [str(at_level(folder / "bundle" / part.file, level)) for part in parts]
    wanted = signature(LLM, dimensions(config))
    loads = [partial(make_session, path, session_options(threads), "cpu") for path in paths]
    session = OrtLanguageSession(Parts(loads, [spec.name for spec in wanted.outputs]), wanted, "cpu")
    cache = KVCache(session.new_cache(HISTORY + FRAME))
    tokens = inputs(config)
    cache.append(session, tokens[:, :HISTORY])
    began = time.perf_counter()
    states = cache.append(session, tokens[:, HISTORY:])
    seconds = time.perf_counter() - began
    np.save(folder / states_file(level), states)
    return {"seconds": seconds, "threads": threads, "cache_bytes": cache.nbytes}


def at_level(graph: Path, level: int) -> Path:
    """The graph, or a copy beside it whose 4-bit products compute at another accuracy level."""
    if level == INT4.accuracy_level:
        return graph
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = level
    copy = graph.with_stem(f"{graph.stem}-level-{level}")
    copy.write_bytes(model.SerializeToString())
    return copy


def states_file(level: int) -> str:
    return f"states-level-{level}.npy"


def reference(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """How far the states read are from the layered reference, and what the parity gate says of it.

    The gate of 4 bits judges the states as they are read. Weights apart, only float32 sums are left of the
    difference: read in float32, the states are held against the same 4-bit weights by the gate of 32 bits.
    """
    from storyv_lite.benchmarks.layered import layer_by_layer
    from storyv_lite.export.verify import LIMITS, compare, failures

    right = layer_by_layer(folder / LLM, config, inputs(config), FRAME)
    states, exact = (np.load(folder / states_file(level)) for level in (INT4.accuracy_level, FLOAT32))
    queries = slice(-dimensions(config).image_tokens, None)
    close, same = compare(states, right.wide), compare(exact, right.rounded)
    story = {"image_states_cosine": compare(states[:, queries], right.wide[:, queries]).cosine}
    found = failures({LLM: asdict(close)}, {LLM: INT4.name}, story)
    found += failures({LLM: asdict(same)}, {LLM: "fp32"}, {})
    return {
        "snr_db": close.snr_db,
        "cosine": close.cosine,
        **story,
        "limits": asdict(LIMITS[INT4.name]),
        "same_weights_snr_db": compare(states, right.rounded).snr_db,
        "same_weights_float32_snr_db": same.snr_db,
        "failures": list(map(str, found)),
        "neighbours": right.neighbours,
        "sizes": right.sizes,
    }


def measure(model: str, place: Path, layers: int, told: Callable[[str], None]) -> dict[str, Any]:
    """Every step of one model in processes of their own, the export killed once on its way."""
    folder = place / model
    asked = {"model": model, "folder": str(folder), "layers": layers}
    row: dict[str, Any] = {"model": model, "layers": layers}

    def step(name: str, **request: Any) -> dict[str, Any]:
        told(f"{model}: {name}")
        return ask_or_raise(f"{model}: {name}", command(name), {**asked, **request}, TIMEOUT_S)

    row["make"] = step("make")
    told(f"{model}: export, to be killed")
    row["killed_after_parts"] = kill_after(folder, asked, max(1, layers // 8))
    row["export"] = step("export")
    row["read"] = step("read", parts=row["export"]["parts"], level=INT4.accuracy_level)
    row["read_float32"] = step("read", parts=row["export"]["parts"], level=FLOAT32)
    row["reference"] = step("reference")
    shutil.rmtree(folder)
    return row


def command(step: str) -> list[str]:
    return [sys.executable, "-m", MODULE, "--step", step]


def kill_after(folder: Path, asked: Mapping[str, Any], parts: int) -> int:
    """Start an export and kill it once so many parts are recorded; how many there then are."""
    exporting = subprocess.Popen(
        command("export"), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert exporting.stdin is not None
    exporting.stdin.write(json.dumps(asked))
    exporting.stdin.close()
    while exporting.poll() is None and len(list((folder / "records").glob("*.json"))) < parts:
        time.sleep(0.2)
    time.sleep(2.0)  # into the next part
    exporting.send_signal(signal.SIGKILL)
    exporting.wait()
    return len(list((folder / "records").glob("*.json")))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what each step took."""
    lines = [
        "| model | weights | 4-bit bytes | parts | export, peak | read 70 behind 140 | peak "
        "| reference, peak | SNR | cosine of [IMG] | the same 4-bit weights | read in float32 | gate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        export, read, right = row["export"], row["read"], row["reference"]
        cells = (
            f"{row['model']}, {row['layers']} layers",
            f"{row['make']['parameters'] / 1e9:.2f} B",
            f"{export['bytes'] / 1e9:.2f} GB",
            f"{len(export['parts'])}, {row['killed_after_parts']} before the kill",
            f"{export['peak_bytes'] / 1e9:.2f} GB",
            f"{read['seconds']:.1f} s",
            f"{read['peak_bytes'] / 1e9:.2f} GB",
            f"{right['peak_bytes'] / 1e9:.2f} GB",
            f"{right['snr_db']:.1f} dB",
            f"{right['image_states_cosine']:.3f}",
            f"{right['same_weights_snr_db']:.1f} dB",
            f"{right['same_weights_float32_snr_db']:.1f} dB",
            "; ".join(right["failures"]) or "passed",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _step(name: str, request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"])
    config = {**MODELS[request["model"]], "num_hidden_layers": request["layers"]}
    if name == "read":
        return read(folder, config, [Part(**part) for part in request["parts"]], request["level"])
    return {"make": make, "export": export, "reference": reference}[name](folder, config)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where the models are made and exported")
    parser.add_argument("--model", choices=MODELS, action="append", help="one of them [default: all]")
    parser.add_argument("--layers", type=int, default=32, help="fewer layers of the same width")
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        return child.answer(child.costed(partial(_step, given.step)))
    if given.folder is None:
        parser.error("a folder with 20 GB of room is needed")
    rows: list[dict[str, Any]] = []
    try:
        for model in given.model or MODELS:
            rows.append(measure(model, given.folder, given.layers, tell))
            if given.record:
                write_record(given.record, {**heading(typed(f"python -m {MODULE}", arguments)), "rows": rows})
    except StoryVError as fault:
        return failed(fault)
    print(table(rows))
    return int(any(row["reference"]["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
