"""Ranges of activations of a component larger than memory: its float32 parts run one after another.

Knows how a part is made to show its inner tensors; how a range is chosen is `calibrate`'s business, how they
are kept `stored_ranges`'.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from storyv_lite.components import Component, Dimensions
from storyv_lite.export.calibrate import KEPT_VALUES, Feed, choose_range
from storyv_lite.export.capture import GRAPH
from storyv_lite.export.datafile import DataFile
from storyv_lite.export.layers import static_tensors
from storyv_lite.export.parts import cut
from storyv_lite.export.quantize import Ranges
from storyv_lite.export.stream import PART_BYTES
from storyv_lite.export.structures import structure_of
from storyv_lite.export.weights import Structure
from storyv_lite.memory import give_back_freed_memory, return_freed_memory
from storyv_lite.quantization import QuantScheme

Array = NDArray[Any]


def ranges_by_parts(
    component: Component,
    checkpoint: Path,
    dims: Dimensions,
    scheme: QuantScheme,
    feeds: Sequence[Feed],
    work: Path,
    part_bytes: int = PART_BYTES,
    progress: Callable[[str], None] = lambda message: None,
) -> Ranges:
    """The range in which 8 bits lose least, of every tensor that `scheme` stores so, over all feeds.

    Each part is written to the folder `work`, run, and removed again.
    """
    return_freed_memory()
    samples: dict[str, list[Array]] = {}
    known = [dict(feed) for feed in feeds]
    with structure_of(component, checkpoint, dims) as structure:
        parts = cut(structure, part_bytes // 4)
        for index, part in enumerate(parts):
            progress(f"{component}: run part {index + 1} of {len(parts)} in 32 bits")
            wanted = static_tensors(part.model, scheme)
            session = _listening(part, component, wanted, work)
            names = [value.name for value in session.get_outputs()]
            taken = [value.name for value in session.get_inputs()]
            later = {value.name for rest in parts[index + 1 :] for value in rest.model.graph.input}
            for tensors in known:
                answers = session.run(names, {name: tensors[name] for name in taken})
                tensors.update(zip(names, answers, strict=True))
                for name in wanted:
                    samples.setdefault(name, []).append(_sample(tensors[name]))
                for name in tensors.keys() - later:
                    del tensors[name]
            del session, answers
            shutil.rmtree(work)
            give_back_freed_memory()
    return {name: choose_range(np.concatenate(found)) for name, found in samples.items()}


def _listening(
    part: Structure, component: Component, wanted: Sequence[str], work: Path
) -> onnxruntime.InferenceSession:
    """A session of one part in 32 bits that gives the `wanted` tensors too."""
    work.mkdir(parents=True, exist_ok=True)
    model = onnx.ModelProto()
    model.CopyFrom(part.model)
    with DataFile(work / "part.data", part.weights, str(component)) as vault:
        kept = [vault.keep(tensor) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    there = {value.name for value in (*model.graph.input, *model.graph.output)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in there)
    (work / GRAPH).write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena, options.log_severity_level = False, 3
    return onnxruntime.InferenceSession(work / GRAPH, options, providers=["CPUExecutionProvider"])


def _sample(tensor: Array) -> Array:
    values = tensor.ravel()
    kept = values[:: max(1, values.size // KEPT_VALUES)]
    return np.concatenate([kept, [values.min(), values.max()]])
