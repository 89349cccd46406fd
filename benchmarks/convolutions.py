"""What a convolution costs in 4 bits: as a product, behind a DequantizeLinear, and in float32.

Run `python -m storyv_lite.benchmarks.convolutions`; prints a table of milliseconds and decibels. The shapes
are those of Stable Diffusion 1.5 at 64x64 latents, the weights random. One thread.
"""

import sys
import time
from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.export.quantize import quantize
from storyv_lite.export.verify import compare
from storyv_lite.quantization import BLOCK_SIZE, Method, QuantScheme

SHAPES = ((320, 320, 64), (640, 640, 32), (1280, 1280, 16), (2560, 1280, 16), (1280, 1280, 8))
RUNS = 5
Floats = NDArray[np.float32]


def convolution(weight: Floats, size: int) -> onnx.ModelProto:
    """One 3x3 convolution in float32, of pictures (1, C, size, size)."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="/Conv", kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    return _model([node], [numpy_helper.from_array(weight, "w")], weight, size)


def widened(weight: Floats, size: int) -> onnx.ModelProto:
    """The same with weights in 4 bits, widened in every call."""
    grouped = weight.reshape(len(weight), -1, BLOCK_SIZE, 3, 3)
    scales = np.abs(grouped).max(axis=2, keepdims=True) / 7
    packed = np.clip(np.rint(grouped / scales), -8, 7).astype(np.int8)
    tensors = [
        helper.make_tensor("q", onnx.TensorProto.INT4, weight.shape, packed.ravel()),
        numpy_helper.from_array(scales[:, :, 0], "s"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1, block_size=BLOCK_SIZE),
        helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=(3, 3), pads=(1, 1, 1, 1)),
    ]
    return _model(nodes, tensors, weight, size)


def as_product(accuracy_level: int) -> Callable[[Floats, int], onnx.ModelProto]:
    scheme = QuantScheme("int4", Method.BLOCK4, accuracy_level=accuracy_level)
    return lambda weight, size: quantize(convolution(weight, size), scheme).model


WAYS: dict[str, Callable[[Floats, int], onnx.ModelProto]] = {
    "float32": convolution,
    "4 bits, widened": widened,
    "4 bits, product": as_product(0),
    "4 bits, product in 8-bit sums": as_product(4),
}


def measure(model: onnx.ModelProto, pictures: Floats, runs: int = RUNS) -> tuple[Floats, float]:
    """The answer, and the fastest of `runs` calls in milliseconds after one more."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    answer: Floats = session.run(None, {"x": pictures})[0]
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(None, {"x": pictures})
        times.append(time.perf_counter() - began)
    return answer, 1000 * min(times)


def table(shapes: Iterable[tuple[int, int, int]] = SHAPES, runs: int = RUNS) -> str:
    """Markdown: one row for each shape, milliseconds and signal-to-noise ratio of each way."""
    random = np.random.default_rng(0)
    lines = [f"| channels, grid | {' | '.join(WAYS)} |", "| --- |" + " --- |" * len(WAYS)]
    for inside, outside, size in shapes:
        weight = (0.02 * random.standard_normal((outside, inside, 3, 3))).astype(np.float32)
        pictures = random.standard_normal((1, inside, size, size)).astype(np.float32)
        wide, cells = None, list[str]()
        for make in WAYS.values():
            answer, milliseconds = measure(make(weight, size), pictures, runs)
            error = "" if wide is None else f", {compare(answer, wide).snr_db:.1f} dB"
            wide = answer if wide is None else wide
            cells.append(f"{milliseconds:.0f} ms{error}")
        lines.append(f"| {inside} to {outside}, {size}x{size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _model(
    nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto], weight: Floats, size: int
) -> onnx.ModelProto:
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, size, size])
        for name, channels in (("x", weight.shape[1]), ("y", weight.shape[0]))
    ]
    graph = helper.make_graph(nodes, "convolution", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def main() -> int:
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
