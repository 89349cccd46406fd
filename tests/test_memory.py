"""Byte sizes in and out, and counters of this very process."""

import os
import subprocess
import sys

import pytest

from storyv_lite.errors import ConfigError
from storyv_lite.memory import device_memory, format_bytes, parse_bytes, resident_memory, usable_cores


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        (" 1.5 gib ", 1536 * 2**20),
        ("300kb", 300_000),
        ("12B", 12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "4", "GiB", "-4GiB", "4 gigs", "4G", "nan GB", "1e9B"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(text)
    assert "4GiB" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (2048, "2.0 KiB"), (300 * 2**20, "300.0 MiB"), (3 * 2**30, "3.0 GiB")],
)
def test_sizes_are_printed_in_binary_units(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_a_printed_size_can_be_read_again() -> None:
    assert parse_bytes(format_bytes(1536 * 2**20)) == 1536 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_remembers_what_was_freed() -> None:
    """In a process of its own, so that no other test has raised the peak before."""
    program = (
        "from storyv_lite.memory import resident_memory as r; before = r(); block = b'x' * 2**27; del block; "
        "now = r(); print(now.peak - before.peak >= 2**26, now.anonymous < before.peak + 2**26, now.file > 0)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["True", "True", "True"]


def test_counters_that_do_not_exist_are_none_and_not_zero() -> None:
    assert resident_memory().peak != 0
    assert device_memory(pid=2**30) is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert usable_cores() == len(allowed)
