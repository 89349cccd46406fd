"""The comparison of engines: what it builds anywhere, and what it says where there is no GPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from storyv_lite.benchmarks.engines import Case, checkpoint_cases, main, measure, unet_case
from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.export.engines import choose_builder
from storyv_lite.export.verify import compare
from storyv_lite.optional import installed
from storyv_lite.runtime.backends import driver

pytestmark = pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed; it exists for Linux and Windows"
)


def test_without_a_gpu_an_engine_is_built_and_nothing_is_compared(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    if not driver.problem():
        pytest.skip("this machine has a GPU")
    (case,) = checkpoint_cases(tiny_checkpoint, tmp_path, [Component.VAE_DECODER])
    row = measure(case, choose_builder())
    assert row["component"] == "vae_decoder" and row["build_s"] > 0
    assert row["engine_bytes"] > 100_000 and row["graph_bytes"] > 10_000
    assert row["compared"] is False and "NVIDIA" in row["reason"] and "ways" not in row


TINY: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}


def test_a_unet_of_stable_diffusions_shape_is_written_for_every_size_and_becomes_an_engine(
    tmp_path: Path,
) -> None:
    import onnxruntime
    import torch

    case = unet_case(TINY, tmp_path)
    graph = onnx.load(case.graph)
    assert {"Softmax", "Conv"} <= {node.op_type for node in graph.graph.node}
    assert {node.domain for node in graph.graph.node} == {""}, "operators of ONNX alone"
    session = onnxruntime.InferenceSession(case.graph, providers=["CPUExecutionProvider"])
    for rows, side in ((1, 16), (2, 8)):
        fed = {name: array if name == "timestep" else array[:rows] for name, array in case.inputs.items()}
        fed["sample"] = fed["sample"][:, :, :side, :side]
        (answer,) = session.run(None, fed)
        with torch.no_grad():
            right = case.module()(*map(torch.from_numpy, fed.values())).numpy()
        assert answer.dtype == np.float32 and compare(answer, right).snr_db > 40
    row = measure(case, choose_builder())
    assert row["profiles"]["height"] == (8, 16, 16)
    assert row["engine_bytes"] > 500_000 and row["peak_bytes"] > row["engine_bytes"]
    weights = sum(np.prod(tensor.dims) for tensor in graph.graph.initializer)
    assert row["graph_bytes"] > 2 * weights, "two bytes per weight, and nodes"


def test_what_no_builder_reads_is_one_error(tmp_path: Path) -> None:
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"no graph")
    with pytest.raises(BackendError, match="`engine of unet` failed: "):
        measure(Case("unet", graph, lambda: None, {}), choose_builder())


@pytest.mark.slow
def test_the_record_is_the_last_line_and_the_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engines.json"
    assert main(["--checkpoint", str(tiny_checkpoint), "--write", str(file)]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record == json.loads(file.read_text())
    assert [row["component"] for row in record["engines"]] == ["unet", "vae_decoder"]


@pytest.mark.gpu
@pytest.mark.slow
def test_on_a_gpu_every_way_answers_as_float32_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for case in checkpoint_cases(tiny_checkpoint, tmp_path):
        ways = measure(case, choose_builder())["ways"]
        assert all(way["snr_db"] > 35 and way["ms"] > 0 for way in ways.values()), ways
