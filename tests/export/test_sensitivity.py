"""What errors of a component cost the picture."""

import json
from pathlib import Path

import pytest

from storyv_lite.export.sensitivity import MIXED, prices


def test_a_price_is_the_mean_over_the_stories(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    """Stories of equal length, so that every one counts the same."""
    lines = (tiny_checkpoint / "calibration.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    first, second = map(json.loads, lines)
    both = prices(tiny_bundle, [first, second])
    alone = [prices(tiny_bundle, [story]) for story in (first, second)]
    assert set(both) == set(MIXED) and all(price > 0 for price in both.values())
    for part in MIXED:
        assert both[part] == pytest.approx((alone[0][part] + alone[1][part]) / 2, rel=1e-6)
