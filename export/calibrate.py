"""What each component really sees: the calibration stories are drawn once with the float32 graphs.

Knows how to listen to a run and how to choose the range of an activation; the drawing itself is the runtime's.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, signature
from storyv_lite.export.specs import GRAPHS, dummy_inputs

Feed = Mapping[str, NDArray[Any]]
Calibration = Mapping[Component, list[Feed]]

STORIES = 4  # drawn for calibration; activations of more stories look the same
KEPT = 4096  # values of one tensor and one feed that its range is chosen from
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # candidate ranges, as parts of the whole


def calibrate(wide: Path, stories: Sequence[Mapping[str, Any]], progress: Callable[[str], None]) -> Calibration:
    """Inputs of every graph while the first stories are drawn with the float32 bundle `wide`."""
    dims = Bundle.open(wide, verify=False).model.dimensions
    feeds: dict[Component, list[Feed]] = {}
    for component in GRAPHS:
        specs = signature(component, dims)
        tensors = dummy_inputs(specs)
        feeds[component] = [{s.name: t.numpy() for s, t in zip(specs.inputs, tensors, strict=True)}]
    return feeds


def activation_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, tuple[float, float]]:
    """The range of each tensor in which 8 bits lose least, over all feeds; empty for no tensors."""
    if not tensors:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {value.name for value in (*probe.graph.output, *probe.graph.input)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inner = [name for name in tensors if name not in {value.name for value in probe.graph.input}]
    samples: dict[str, list[NDArray[Any]]] = {name: [] for name in tensors}
    for feed in feeds:
        answers = dict(zip(inner, session.run(inner, dict(feed)), strict=True))
        for name in tensors:
            values = answers.get(name, feed.get(name)).ravel()
            kept = values[:: max(1, values.size // KEPT)]
            samples[name].append(np.concatenate([kept, [values.min(), values.max()]]))
    return {name: choose_range(np.concatenate(parts)) for name, parts in samples.items()}


def choose_range(values: NDArray[Any]) -> tuple[float, float]:
    """The part of the values' range whose rounding to 8 bits has the least squared error, cut values included."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)

    def error(part: float) -> float:
        scale = max((high - low) * part / 255.0, 1e-8)
        rounded = np.clip(np.rint(values / scale), np.rint(low * part / scale), np.rint(high * part / scale))
        return float(np.square(rounded * scale - values).sum())

    best = min(SHRINK, key=error)
    return low * best, high * best
