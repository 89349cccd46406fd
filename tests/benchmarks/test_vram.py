"""The measurement of GPU memory at size: what it draws, and what it says where there is no GPU."""

import json
from pathlib import Path

import pytest
import torch

from storyv_lite.benchmarks import vram
from storyv_lite.benchmarks.big_checkpoint import Size, make_checkpoint


def test_without_cuda_the_record_says_not_measured_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    file = tmp_path / "vram.json"
    assert vram.main([str(tmp_path / "big"), "--record", str(file)]) == 0
    printed = capsys.readouterr()
    record = json.loads(file.read_text())
    assert record == json.loads(printed.out.splitlines()[-1])
    assert record["measured"] is False and "cuda" in record["reason"] and record["rows"] == []
    assert "not measured: " in printed.err and not (tmp_path / "big").exists()


def test_a_narrow_model_of_the_published_shapes_is_drawn_and_put_into_the_table(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Size(layers=2, narrow=16))
    request = {"checkpoint": str(tmp_path), "device": "cpu", "precision": "nf4", "idle_bytes": None}
    row = vram.draw({**request, "steps": 1, "frames": 2})
    assert [len(row["frames"]), row["precision"]] == [2, "nf4"] and "bitsandbytes" in row["versions"]
    assert {"total", "read", "draw", "decode"} <= row["frames"][1].keys()
    assert row["peak_allocated_bytes"] is None and row["over_idle_bytes"] is None
    told = vram.table([row, {**row, "precision": "fp16", "peak_allocated_bytes": 3 * 2**30}])
    assert "| nf4" in told and "| 3.0 GiB" in told
