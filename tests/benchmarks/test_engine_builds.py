"""The comparison of engines: what it builds anywhere, and what it says where there is no GPU."""

import json
from pathlib import Path

import numpy as np
import pytest

from storyv_lite.benchmarks.engines import checkpoint_cases, main, measure, unet_case
from storyv_lite.components import Component
from storyv_lite.export.engines import choose_builder
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


@pytest.mark.slow
def test_a_unet_of_diffusers_is_written_in_half_between_float_borders_and_built(tmp_path: Path) -> None:
    import onnxruntime

    small = {"sample_size": 16, "cross_attention_dim": 32, "attention_head_dim": 8}
    blocks = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
    }
    case = unet_case({**small, **blocks}, tmp_path)
    session = onnxruntime.InferenceSession(case.graph, providers=["CPUExecutionProvider"])
    one = {name: array[:1] for name, array in case.inputs.items()}
    (answer,) = session.run(None, one)
    assert answer.dtype == np.float32 and answer.shape == one["sample"].shape
    assert measure(case, choose_builder())["engine_bytes"] > 1_000_000


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
