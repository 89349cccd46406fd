"""The table of roundings: every way of every component is measured on stories it has not seen."""

from pathlib import Path

from storyv_lite.benchmarks import rounding
from storyv_lite.export.calibrate import read_stories
from storyv_lite.quantization import Rounding


def test_every_rounding_of_every_component_has_a_row(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    _, _, *rows = rounding.table(tiny_bundle, read_stories(tiny_checkpoint)).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(c, r) for c, r, *_ in cells] == [(c, r) for c in rounding.COMPONENTS for r in Rounding]
    assert all(0.9 < float(cosine) < 1 and 10 < float(snr) < 60 for *_, cosine, snr in cells)
