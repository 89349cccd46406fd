"""8-bit layers on processors without VNNI, which add pairs of products in 16 saturating bits, unseen.

Two proofs for the shipped bundle, or for a tiny one where none ships: the sums of every layer on what it
really sees, and two frames drawn under an emulated processor of that kind.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from storyv_lite.benchmarks.gpu import psnr
from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.components import Component
from storyv_lite.export.calibrate import Listener
from storyv_lite.export.capture import load_graph
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Story

ROOT = Path(__file__).parents[2]
STORY = "Milo is waving in the meadow. He is jumping with a ball."
# Two stories of one frame, eight evaluations, no guidance: pictures fed back, guidance and many evaluations
# make roundings large. With twelve and guidance 3, 4-bit layers that compute in float32 move a picture as far
# on the same processor (32 dB) as another processor does.
ALONE = ("Milo is waving in the meadow.", "Luna is jumping on the beach with a ball.")
COLUMNS = 48  # positions of a convolution, or rows of a product, that are added up per layer and call
EMULATOR = shutil.which("qemu-x86_64")
DRAW = f"""
import sys, numpy as np
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Story
pipeline = StoryPipeline.from_bundle(sys.argv[1], "cpu", threads=1)
stories = [Story.from_text(text) for text in {ALONE!r}]
np.save(sys.argv[2], [frame.image for story in stories for frame in
    pipeline.draw(story, seed=1, num_inference_steps=8, guidance_scale=1.0)])
"""


@pytest.fixture
def bundle(request: pytest.FixtureRequest) -> Path:
    shipped = (PACKAGED / "manifest.json").is_file()
    return PACKAGED if shipped else Path(request.getfixturevalue("tiny_bundle_int8"))


def pair_sums(values: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """(rows, K) by (K, columns) as a processor without VNNI adds: pairs of products saturate at 16 bits."""
    rows, columns = values.astype(np.int64), weights.astype(np.int64)
    if rows.shape[1] % 2:
        rows, columns = np.pad(rows, ((0, 0), (0, 1))), np.pad(columns, ((0, 1), (0, 0)))
    total = np.zeros((len(rows), columns.shape[1]), np.int64)
    for k in range(0, rows.shape[1], 2):
        pair = rows[:, k, None] * columns[k] + rows[:, k + 1, None] * columns[k + 1]
        total += np.clip(pair, -(2**15), 2**15 - 1)
    return total


def patches(values: NDArray[np.uint8], node: onnx.NodeProto, zero: int) -> NDArray[np.uint8]:
    """What a layer multiplies: rows of a product, or for a convolution the pixels under its window."""
    if node.op_type != "Conv":
        return values.reshape(-1, values.shape[-1])[:COLUMNS]
    settings = {a.name: list(a.ints) for a in node.attribute if a.ints}
    top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
    (height, width), (down, across) = settings["kernel_shape"], settings.get("strides", [1, 1])
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=zero)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (2, 3))[
        :, :, ::down, ::across
    ]
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(-1, height * width * values.shape[1])
    return np.ascontiguousarray(rows[:: max(1, len(rows) // COLUMNS)][:COLUMNS])


def layers(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, NDArray[np.int8], int]]:
    """Every layer with 8-bit inputs: node, name of its activations in 8 bits, weights (K, columns), zero."""
    makers = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        sources = [makers.get(name) for name in node.input[:2]]
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        if any(source is None or source.op_type != "DequantizeLinear" for source in sources):
            continue
        values, packed = (source.input for source in sources if source is not None)
        weight = tensors[packed[0]]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "Conv":
            weight = weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])
        yield node, values[0], weight.T if transposed else weight, int(tensors[values[2]].item())


def test_the_emulated_sum_saturates_with_full_weights_and_not_with_reduced_ones() -> None:
    bright = np.full((1, 4), 255, np.uint8)
    assert pair_sums(bright, np.full((4, 1), 127, np.int8)) == 2 * (2**15 - 1)
    assert pair_sums(bright, np.full((4, 1), -64, np.int8)) == 4 * 255 * -64


@pytest.mark.slow
@pytest.mark.parametrize("component", [Component.UNET, Component.VAE_DECODER])
def test_no_sum_of_a_drawn_frame_saturates(bundle: Path, component: Component) -> None:
    listener = Listener(open_backend("cpu", threads=1))
    list(StoryPipeline(Bundle.open(bundle), listener).draw(Story.from_text(STORY), seed=1))
    model = load_graph(bundle / component)
    found = list(layers(model))
    names = sorted({values for _, values, _, _ in found})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = listener.feeds[component]
    for feed in (feeds[0], feeds[-1]):
        seen = dict(zip(names, session.run(names, dict(feed)), strict=True))
        for node, values, weights, zero in found:
            rows = patches(seen[values], node, zero)
            exact = rows.astype(np.int64) @ weights.astype(np.int64)
            assert np.array_equal(pair_sums(rows, weights), exact), node.name
    assert len(found) > 5


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed")
def test_two_frames_are_the_same_on_a_processor_without_vnni(bundle: Path, tmp_path: Path) -> None:
    frames = []
    for name, emulator in (("native", []), ("haswell", [str(EMULATOR), "-cpu", "Haswell"])):
        file = tmp_path / f"{name}.npy"
        command = [*emulator, sys.executable, "-c", DRAW, str(bundle), str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr[-2000:]
        frames.append(np.load(file, allow_pickle=False))
    assert min(psnr(native, other) for native, other in zip(*frames, strict=True)) >= 35
