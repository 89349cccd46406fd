"""The table of bundles: bytes and likeness to full precision, one row each."""

import json
from pathlib import Path

import pytest

from storyv_lite.benchmarks import widths


@pytest.mark.slow
def test_every_bundle_has_its_bytes_and_its_distance_from_full_precision(
    tiny_checkpoint: Path, tiny_bundle: Path, tiny_bundle_int8: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--wide", str(tiny_bundle), "--checkpoint", str(tiny_checkpoint), "--stories", "1"]
    assert widths.main([*command, str(tiny_bundle), str(tiny_bundle_int8)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    same, narrow = found[tiny_bundle.name], found[tiny_bundle_int8.name]
    assert same["psnr_db"] > 100 > narrow["psnr_db"] > 10 and narrow["bytes"] < same["bytes"]
