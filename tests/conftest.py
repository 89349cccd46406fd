"""Fixtures that every test may use: one tiny checkpoint and the bundles exported from it, once per run."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of random weights at the smallest useful size; do not write into it."""
    folder: Path = _beside("tiny").write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
    return folder


@pytest.fixture
def recordable() -> AbstractContextManager[Any]:
    """A context in which work fails that a CUDA graph cannot hold."""
    mode: AbstractContextManager[Any] = _beside("recordable").Recordable()
    return mode


def _beside(name: str) -> ModuleType:
    """The module `name` of this folder, by its path: an installed package may be what is tested."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported as float32; do not write into it."""
    from storyv_lite.export.assemble import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny", scheme="fp32")


@pytest.fixture(scope="session")
def tiny_bundle_int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported as `storyv-lite export` does it; do not write into it."""
    from storyv_lite.export.assemble import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny-int8")


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A limit on the size of files, which stands for a full disk; it must not outlast what it is for."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
