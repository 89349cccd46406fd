"""The comparison of CUDA with the CPU: what it computes, and what it says where there is no GPU."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from storyv_lite.benchmarks import gpu
from storyv_lite.benchmarks.gpu import SAME_PSNR, agreement, compare_devices, main, psnr
from storyv_lite.benchmarks.measure import PICNIC
from storyv_lite.benchmarks.probe import ProbeRequest, probe
from storyv_lite.bundle import Bundle
from storyv_lite.errors import BackendError
from storyv_lite.runtime.backends import open_backend


def cuda_works() -> bool:
    try:
        open_backend("cuda")
    except BackendError:
        return False
    return True


def test_without_cuda_the_record_says_not_measured_and_why(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if cuda_works():
        pytest.skip("this machine has CUDA")
    file = tmp_path / "gpu.json"
    assert main(["--bundle", str(tiny_bundle), "--write", str(file)]) == 0
    printed = capsys.readouterr()
    record = json.loads(printed.out.splitlines()[-1])
    assert record == json.loads(file.read_text())
    assert record["measured"] is False and "cuda" in record["reason"]
    assert "not measured: " in printed.err
    assert not {"agreement", "cost"} & set(record)


def test_a_gpu_that_is_there_and_fails_is_no_missing_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda_works():
        pytest.skip("this machine has CUDA")
    monkeypatch.setattr(gpu, "problem", lambda provider: "")
    found = compare_devices(tiny_bundle, PICNIC[:1])
    assert found["measured"] is False and found["error"].startswith("cuda: ") and "reason" not in found


def test_a_probe_keeps_states_latents_and_pictures_and_agrees_with_itself(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    request = ProbeRequest(str(tiny_bundle), PICNIC[:2], "cpu", str(tmp_path / "cpu.safetensors"))
    answer = probe(request)
    assert answer["device"] == "cpu" and answer["process_device_bytes"] is None
    tensors = load_file(request.file)
    dims = Bundle.open(tiny_bundle).model.dimensions
    size, latents = dims.image_size, (dims.latent_channels, dims.latent_size, dims.latent_size)
    assert tensors["states"].shape == (2, dims.image_tokens, dims.hidden_size)
    assert tensors["latents"].shape == (2, *latents)
    assert tensors["given"].shape == tensors["drawn"].shape == (2, size, size, 3)
    assert json.loads(json.dumps(asdict(request)))["captions"] == list(PICNIC[:2])
    same = agreement(tensors, tensors)
    assert same["states_max_difference"] == same["latents_max_difference"] == 0
    assert same["given_pictures_psnr_db"] == same["drawn_story_psnr_db"] == SAME_PSNR


def test_the_worst_frame_counts() -> None:
    black, grey = np.zeros((2, 4, 4, 3), dtype=np.uint8), np.zeros((2, 4, 4, 3), dtype=np.uint8)
    grey[1] = 16
    assert psnr(black[1], grey[1]) == pytest.approx(24.05, abs=0.01)
    states = {"states": np.zeros((2, 1)), "latents": np.zeros((2, 1))}
    moved = {"states": np.array([[0.0], [-3.0]]), "latents": np.zeros((2, 1))}
    found = agreement({**states, "given": black, "drawn": black}, {**moved, "given": grey, "drawn": black})
    assert found["states_max_difference"] == found["states_largest"] == 3
    assert found["given_pictures_psnr_db"] == pytest.approx(24.05, abs=0.01)
    assert found["drawn_story_psnr_db"] == SAME_PSNR


@pytest.mark.gpu
def test_cuda_and_the_cpu_draw_the_same(tiny_bundle: Path) -> None:
    found = compare_devices(tiny_bundle, PICNIC)
    assert found["measured"], found
    assert found["agreement"]["states_max_difference"] < 1e-2
    assert found["agreement"]["given_pictures_psnr_db"] > 30
