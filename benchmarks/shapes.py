"""Models of a real size with random weights, written shard by shard: what exports are measured on.

Knows the shapes of a module and the file format; time and memory of what is measured do not depend on the
values. At most one tensor is in memory.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEVIATION = 0.02
SHARD_BYTES = 2 * 10**9
WEIGHTS = "model"
Shapes = Mapping[str, tuple[int, ...]]


def write_random(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Shapes,
    without: tuple[str, ...] = (),
    into_residual: tuple[str, ...] = (),
    layers: int = 1,
) -> int:
    """Write `config.json` and float16 tensors of these shapes; returns how many weights there are.

    Norms are near one, everything else is normal with a deviation of 0.02; products that add to the residual
    stream (names that end in one of `into_residual`) with that over the root of twice the `layers`, as deep
    models begin: without it nothing is left of a state after 32 layers of roundings (measured). Tensors whose
    names end in one of `without` are left out. What is there already, from an earlier run, is kept.
    """
    kept = {name: shape for name, shape in shapes.items() if not name.endswith(without or ("\n",))}
    count = sum(int(np.prod(shape)) for shape in kept.values())
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(kept))
    names = [f"{WEIGHTS}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for index, (name, shard) in enumerate(zip(names, shards, strict=True)):
        if not (folder / name).exists():
            deep = {
                tensor: (2 * layers) ** -0.5 for tensor in shard if tensor.endswith(into_residual or "\n")
            }
            _write_shard(folder / name, shard, deep, np.random.default_rng(index))
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    (folder / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return count


def _shards(shapes: Shapes) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if shard and size + nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += nbytes
    yield shard


def _write_shard(
    path: Path, shapes: Shapes, factors: Mapping[str, float], random: np.random.Generator
) -> None:
    header, end = dict[str, Any](), 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    new = path.with_suffix(".new")
    with new.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            stream.write(_values(name, shape, factors.get(name, 1.0), random).tobytes())
    new.rename(path)


def _values(
    name: str, shape: tuple[int, ...], factor: float, random: np.random.Generator
) -> NDArray[np.float16]:
    table = _quantiles() * np.float32(DEVIATION * factor)
    if len(shape) == 1 and name.endswith("weight"):  # of a norm
        table += np.float32(1.0)
    chosen = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16).reshape(shape)
    return table.astype(np.float16)[chosen]


@cache
def _quantiles() -> NDArray[np.float32]:
    """As many numbers as two bytes count, spread like a normal deviate: looked up faster than drawn."""
    normal, count = NormalDist(), 2**16
    return np.array([normal.inv_cdf((index + 0.5) / count) for index in range(count)], np.float32)
