"""The table of convolutions: every way of storing one answers nearly the same."""

import re

from storyv_lite.benchmarks import convolutions


def test_every_way_of_storing_a_convolution_is_timed_and_close_to_the_wide_one() -> None:
    header, _, row = convolutions.table([(64, 32, 8)], runs=1).splitlines()
    assert header.count("|") == row.count("|") == len(convolutions.WAYS) + 2
    assert row.startswith("| 64 to 32, 8x8 |")
    ratios = [float(found) for found in re.findall(r"([\d.]+) dB", row)]
    assert len(ratios) == len(convolutions.WAYS) - 1 and min(ratios) > 17
