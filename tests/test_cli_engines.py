"""`storyv-lite export --target tensorrt`: what it refuses, where possible before anything is loaded."""

import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from storyv_lite.bundle import PACKAGED
from storyv_lite.cli import app
from storyv_lite.optional import installed

needs_rtx = pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed; it exists for Linux and Windows"
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(code: int, *arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
    assert result.exit_code == code and result.stdout == "", result.output
    assert "error: " in result.stderr and "\n\nhint: " in result.stderr
    return result.stderr


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    assert "there are onnx, tensorrt, tensorrt-rtx" in refused(2, "--target", "openvino")


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("unet=int4", "`unet` as `int4-block32`.*MatMulNBits"),
        ("vae=int8", "`vae_decoder` as `int8`.*zero point"),
    ],
)
def test_a_scheme_that_cannot_become_an_engine_is_refused_at_once(scheme: str, reason: str) -> None:
    told = refused(5, "--target", "tensorrt", "--scheme", scheme)
    assert re.search(reason, told) and "stores it as half" in told


def test_mixed_widths_become_no_engine() -> None:
    told = refused(2, "--int4", "--target-bytes", "20MB", "--target", "tensorrt")
    assert "mixed widths cannot become engines for tensorrt" in told


def test_a_bundle_is_no_checkpoint(tiny_bundle: Path) -> None:
    told = refused(2, tiny_bundle)
    assert "is a bundle: it can get engines" in told and f"export {tiny_bundle} --target tensorrt" in told
    for option in ("--int4", "--fp16", "--allow-degraded", "--low-memory"):
        told = refused(2, tiny_bundle, "--target", "tensorrt-rtx", option)
        assert f"export {tiny_bundle} --target tensorrt-rtx" in told


@needs_rtx
def test_an_output_that_exists_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = refused(2, tiny_checkpoint, "--target", "tensorrt-rtx", "-o", "out")
    assert "`out` exists" in told and not list((tmp_path / "out").iterdir())


@needs_rtx
@pytest.mark.skipif(not PACKAGED.is_dir(), reason="no bundle is packaged")
def test_the_bundle_that_ships_is_refused_by_the_builder_and_stays_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(PACKAGED, tmp_path / "toon")
    before = sorted(file.name for file in (tmp_path / "toon").rglob("*"))
    told = refused(5, "toon", "--target", "tensorrt-rtx")
    assert "`unet` as `int8` cannot become a TensorRT engine: QuantizeLinear" in told
    assert sorted(file.name for file in (tmp_path / "toon").rglob("*")) == before


def test_a_scheme_for_a_part_that_a_target_chooses_for_is_refused(tiny_checkpoint: Path) -> None:
    told = refused(2, tiny_checkpoint, "--int4", "--target-bytes", "20MB", "--scheme", "llm=int8")
    assert "`language_model`" in told or "`llm" in told
