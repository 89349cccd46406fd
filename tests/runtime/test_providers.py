"""Where graphs run: the provider asked for or an error, never another one without a word."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime as ort
import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.runtime import backends
from storyv_lite.runtime.backends import driver, open_backend, providers
from storyv_lite.runtime.backends.ort import check_provider, session_options

Run = Callable[..., tuple[int, str, str]]

NEED_A_GPU = ("cuda", "tensorrt", "tensorrt-rtx")


@pytest.fixture
def no_gpu() -> None:
    if not driver.problem():
        pytest.skip("this machine has a GPU")


def test_the_names_that_can_be_asked_for_are_those_of_the_providers() -> None:
    assert backends.PROVIDERS == ("auto", *providers.PROVIDERS)
    assert set(providers.INSTALL) == set(NEED_A_GPU)


@pytest.mark.parametrize("provider", NEED_A_GPU)
@pytest.mark.usefixtures("no_gpu")
def test_a_provider_that_does_not_work_here_is_an_error_with_the_reason_and_the_extra(provider: str) -> None:
    with pytest.raises(
        BackendError, match=f"`{provider}` was asked for and does not work: there is no"
    ) as caught:
        open_backend(provider=provider)
    assert "pip install 'storyv-lite[cuda" in caught.value.hint


def test_an_unknown_provider_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match="`openvino` is no provider; one of auto, cpu, cuda, tensor"):
        open_backend(provider="openvino")


def test_a_device_and_a_provider_that_exclude_each_other_are_refused() -> None:
    for device, provider in (("cpu", "tensorrt"), ("cuda", "cpu")):
        with pytest.raises(BackendError, match=f"`--provider {provider}` does not run on"):
            open_backend(device, provider=provider)


@pytest.mark.usefixtures("no_gpu")
def test_auto_says_what_it_chose_and_why_and_cpu_is_what_was_asked_for() -> None:
    auto, asked = open_backend(), open_backend(provider="cpu")
    assert auto.provider == asked.provider == "CPUExecutionProvider"
    assert auto.reason.startswith("no CUDA: there is no") and asked.reason == "asked for"


def test_a_session_that_runs_elsewhere_is_an_error(tiny_bundle: Path) -> None:
    path = str(
        Bundle.open(tiny_bundle).file(Bundle.open(tiny_bundle).variant(Component.MAPPER).parts[0].file)
    )
    options = session_options(1)
    options.add_session_config_entry(*providers.RECORD_NODES)
    session = providers.make_session(path, options, "cpu")
    check_provider(session, "CPUExecutionProvider", path)
    with pytest.raises(BackendError, match="runs on `CPUExecutionProvider`, `CUDAExecutionProvider` was"):
        check_provider(session, "CUDAExecutionProvider", path)
    nodes = providers.nodes_by_provider(session)
    assert list(nodes) == ["CPUExecutionProvider"] and nodes["CPUExecutionProvider"] > 10


@pytest.mark.usefixtures("no_gpu")
def test_the_library_itself_never_falls_back_for_us(tiny_bundle: Path) -> None:
    """Asked for CUDA where there is none it makes a session on the CPU, which `check_provider` sees."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    file = tiny_bundle / "mapper" / "model.onnx"
    session = providers.make_session(str(file), session_options(1), "cuda")
    with pytest.raises(BackendError, match="`CUDAExecutionProvider` was asked for"):
        check_provider(session, "CUDAExecutionProvider", str(file))


@pytest.mark.usefixtures("no_gpu")
def test_render_refuses_and_doctor_tells_why(tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "day.txt").write_text("Milo is waving.\n")
    asked = ("render", tmp_path / "day.txt", "--bundle", tiny_bundle, "-o", tmp_path / "out")
    code, out, err = run(*asked, "--provider", "tensorrt-rtx")
    assert code == 5 and out == "" and "`tensorrt-rtx` was asked for and does not work" in err
    assert run(*asked, "--provider", "openvino")[0] == 5 and not (tmp_path / "out").exists()
    code, out, _ = run("doctor")
    assert code == 0 and "provider cpu: works" in out
    assert all(f"provider {name}: no, there is no NVIDIA" in out for name in NEED_A_GPU)


@pytest.mark.gpu
def test_cuda_runs_what_it_was_asked_to_run(tiny_bundle: Path) -> None:
    open_backend(provider="cuda").open(Bundle.open(tiny_bundle), Component.MAPPER).close()
