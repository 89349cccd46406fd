"""Weights that are not in memory: what a graph's initializers will hold, read when somebody asks for one.

Knows shapes, where values come from and what is done to them on the way (stacked, turned); nothing of layers.
A graph whose initializers are such weights is a `Structure`: all nodes, no numbers.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from storyv_lite.checkpoint import train_command
from storyv_lite.errors import BundleError
from storyv_lite.tensors import StoredTensor, open_shards

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Weight:
    """A float32 tensor; every `read` reads it anew."""

    shape: tuple[int, ...]
    read: Callable[[], Floats]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


Weights = Mapping[str, Weight]


def file_times(checkpoint: Path) -> dict[str, list[int]]:
    """Size and time of every file that an export reads: files may be large, their contents are not read."""
    return {
        file.relative_to(checkpoint).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns]
        for pattern in ("[!.]*/*.safetensors", "[!.]*/*.json")
        for file in sorted(checkpoint.glob(pattern))
    }


def refuse_changed(checkpoint: Path, times: Mapping[str, list[int]]) -> None:
    """Raise `BundleError` when a file of `checkpoint` is not what it was at `times`."""
    if file_times(checkpoint) != times:
        raise BundleError(
            f"`{checkpoint}` was changed while it was exported", "export it again when nothing trains it"
        )


@dataclass(frozen=True)
class Structure:
    """A graph, and the weights that its external initializers stand for, by name."""

    model: onnx.ModelProto
    weights: Weights


def of_module(module: nn.Module) -> dict[str, Weight]:
    """The weights of a module that is in memory."""

    def weight(tensor: Any) -> Weight:
        return Weight(tuple(tensor.shape), lambda: np.asarray(tensor.detach().float().cpu().numpy()))

    return {name: weight(tensor) for name, tensor in module.state_dict().items()}


@contextmanager
def of_folder(folder: Path) -> Iterator[dict[str, Weight]]:
    """The weights of a component's folder, on the disk.

    Raises `BundleError` for a faulty file; so does reading a weight in which something is no number.
    """
    with open_shards(folder) as tensors:
        yield {name: _stored(name, tensor) for name, tensor in tensors.items()}


def sizes(checkpoint: Path) -> dict[str, dict[str, int]]:
    """How many values every weight of every component in a checkpoint has, by their names.

    Raises `BundleError` for a faulty file.
    """
    counts = {}
    for folder in sorted(file.parent for file in checkpoint.glob("[!.]*/config.json")):
        if any(folder.glob("*.safetensors")):
            with of_folder(folder) as weights:
                counts[folder.name] = {name: weight.size for name, weight in weights.items()}
    return counts


def stacked(*weights: Weight) -> Weight:
    """Several weights one after another, along their first axis."""
    if len(weights) == 1:
        return weights[0]
    rows = sum(weight.shape[0] for weight in weights)

    def read() -> Floats:
        whole = np.empty((rows, *weights[0].shape[1:]), np.float32)
        start = 0
        for weight in weights:
            whole[start : start + weight.shape[0]] = weight.read()
            start += weight.shape[0]
        return whole

    return Weight((rows, *weights[0].shape[1:]), read)


def turned(weight: Weight) -> Weight:
    """A matrix with its axes exchanged."""
    return Weight(weight.shape[::-1], lambda: weight.read().T)


def plus_one(weight: Weight) -> Weight:
    """As norms of the Gemma family are applied."""
    return Weight(weight.shape, lambda: weight.read() + np.float32(1.0))


def placeholder(name: str, weight: Weight) -> onnx.TensorProto:
    """The initializer of a structure: name, type and shape, and no bytes."""
    return onnx.TensorProto(
        name=name,
        data_type=onnx.TensorProto.FLOAT,
        dims=weight.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )


def fill(structure: Structure) -> onnx.ModelProto:
    """The model with every weight in it."""
    model = onnx.ModelProto()
    model.CopyFrom(structure.model)
    for tensor in model.graph.initializer:
        if tensor.name in structure.weights:
            value = np.ascontiguousarray(structure.weights[tensor.name].read())
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def _stored(name: str, tensor: StoredTensor) -> Weight:
    def read() -> Floats:
        value = tensor.read()
        # both are NaN where one value is; a mask of all values would be a quarter of them again in memory
        if not np.isfinite([value.min(initial=0), value.max(initial=0)]).all():
            file = Path(tensor.stream.name)
            raise BundleError(
                f"`{file}` has NaN or infinity in `{name}`",
                hint=f"repair that file, or train it again: {train_command(file.parent.parent)}",
            )
        return value

    return Weight(tensor.shape, read)
