"""Folders, links, package list and wheel say the same thing, and the light parts stay light."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from storyv_lite.bundle import PACKAGED, Bundle

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "export", "runtime", "train")
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "transformers", "diffusers", "optimum", "bitsandbytes")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


def folders_with_code() -> set[str]:
    core = {"storyv_lite", "storyv_lite.cli", "storyv_lite.modeling"}
    for folder in FOLDERS:
        for init in (ROOT / folder).rglob("__init__.py"):
            core.add("storyv_lite." + ".".join(init.parent.relative_to(ROOT).parts))
    for init in (ROOT / "storyv_lite").rglob("__init__.py"):
        if init.relative_to(ROOT / "storyv_lite").parts[0] not in FOLDERS:
            core.add(".".join(init.parent.relative_to(ROOT).parts))
    return core


def test_the_package_list_equals_the_folders_that_hold_code() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert set(listed) == folders_with_code()
    assert listed == sorted(listed)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_link_points_at_its_folder_beside_the_package(folder: str) -> None:
    link = ROOT / "storyv_lite" / folder
    if not link.exists():
        pytest.skip("this checkout has no links")
    assert link.is_symlink() and os.readlink(link) == f"../{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_importing_a_folder_by_its_own_name_is_refused_with_the_right_name(folder: str) -> None:
    answer = python("-c", f"import {folder}")
    assert answer.returncode != 0
    assert f"import storyv_lite.{folder}; `{folder}` is only the folder it lives in" in answer.stderr


def test_importing_the_command_line_loads_no_framework() -> None:
    loaded = f"[m for m in {(*HEAVY, 'numpy', 'PIL', 'rich')} if m in sys.modules]"
    answer = python("-c", f"import sys, storyv_lite.cli; print({loaded})")
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr


def test_importing_the_runtime_loads_no_training_framework() -> None:
    loaded = "[m for m in ('torch', 'transformers', 'diffusers', 'onnx') if m in sys.modules]"
    answer = python("-c", f"import sys, storyv_lite.runtime.pipeline; print({loaded})")
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr


def test_every_extra_that_brings_torch_keeps_it_below_2_14() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    torch = [line for lines in extras.values() for line in lines if line.startswith("torch>")]
    assert torch and all(line.endswith(",<2.14") for line in torch)


def test_the_installed_package_needs_no_training_framework() -> None:
    base = PROJECT["project"]["dependencies"]
    names = {line.split(">")[0].split("[")[0] for line in base}
    assert names == {
        "numpy", "onnxruntime-gpu", "onnxruntime", "tokenizers", "safetensors", "pillow", "typer", "rich"
    }  # fmt: skip


def test_the_shipped_bundle_was_exported_from_the_committed_checkpoint_and_both_are_small() -> None:
    checkpoint = ROOT / "checkpoints" / "toon"
    if not (PACKAGED / "manifest.json").exists():
        pytest.skip("no default model is packaged yet")
    if (ROOT / "PKG-INFO").exists():
        pytest.skip("a source distribution holds no checkpoint")
    from storyv_lite.checkpoint import checkpoint_hash, read_checkpoint

    bundle = Bundle.open(PACKAGED)
    assert bundle.provenance["checkpoint"] == read_checkpoint(checkpoint)["preset"] == "toon"
    assert bundle.provenance["checkpoint_sha256"] == checkpoint_hash(checkpoint)
    assert bundle.total_bytes <= 25_000_000
    weights = [file for file in checkpoint.rglob("*.safetensors") if "state" not in file.parts]
    assert sum(file.stat().st_size for file in weights) <= 64_000_000


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_package_and_nothing_of_tests_or_checkpoints(tmp_path: Path) -> None:
    sources = tmp_path / "source"
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listing:
        if (ROOT / name).exists() or (ROOT / name).is_symlink():
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_symlink():
                (sources / name).symlink_to(os.readlink(ROOT / name))
            else:
                shutil.copy(ROOT / name, sources / name)
    built = python(
        "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(sources), cwd=tmp_path
    )
    assert built.returncode == 0, built.stdout + built.stderr

    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"storyv_lite"}
    expected = {
        f"storyv_lite/{path.relative_to(ROOT if top != 'storyv_lite' else ROOT / top).as_posix()}"
        for top in (*FOLDERS, "storyv_lite")
        for path in (ROOT / top).rglob("*.py")
        if str(path.relative_to(ROOT)) in listing
    }
    assert expected <= names
    assert {name for name in names if name.endswith(".py")} == expected
    assert "storyv_lite/py.typed" in names
    bundles = {name for name in listing if name.startswith("storyv_lite/bundles/")}
    assert bundles <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)

    sdist = next((tmp_path / "dist").glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert not [name for name in inside if name.startswith(("checkpoints", "data/", "bundles/"))]
    assert "tests/test_packaging.py" in inside and "runtime/__init__.py" in inside
