"""Fixtures that every test may use: one tiny checkpoint and the bundle exported from it, once per run."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of random weights at the smallest useful size; do not write into it."""
    from tests.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported as float32; do not write into it."""
    from storyv_lite.export.assemble import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny", scheme="fp32")
