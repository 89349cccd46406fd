"""Byte sizes as people write them, and what a process has: resident memory, device memory, cores.

Knows the operating system's counters, no framework. Peak resident memory is `VmHWM`, read by the measured
process itself: a child's `ru_maxrss` starts at its parent's size and so measures the parent.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storyv_lite.errors import ConfigError

_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]i?b|b)", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `4GB` (10^9), `4GiB` (2^30) or `512MiB`. Raises `ConfigError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"`{text}` is not a size; a number with a unit is needed",
            hint="write it like `4GiB`, `4GB` or `512MiB`",
        )
    return round(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(count: int) -> str:
    """A size for people: GiB from 1 GiB on, MiB from 1 MiB on, KiB below."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB" if count >= 2**10 else f"{count} B"


@dataclass(frozen=True)
class ResidentMemory:
    """What this process holds in memory, in bytes; a counter the system does not offer is None."""

    peak: int | None  # the most it ever held
    anonymous: int | None  # its own pages now: weights, buffers, heap
    file: int | None  # pages of files it maps now; the system can drop these

    @property
    def now(self) -> int | None:
        """Everything it holds now."""
        return None if self.anonymous is None or self.file is None else self.anonymous + self.file


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_earlier = 0  # the highest peak that `take_peak` has taken: the system has forgotten it


def resident_memory() -> ResidentMemory:
    """Read this process's counters: `VmHWM`, `RssAnon` and `RssFile` on Linux, the peak alone on macOS."""
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        peak, *now = (_kilobytes(fields.get(name)) for name in ("VmHWM", "RssAnon", "RssFile"))
        return ResidentMemory(peak and max(peak, _earlier), *now)
    if sys.platform == "darwin":
        import resource

        return ResidentMemory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None, None)
    return ResidentMemory(None, None, None)


def take_peak() -> int | None:
    """The most this process held since the last call, or since its start; None where Linux cannot say.

    The system's counter begins anew with it; `resident_memory` still knows the peak of the whole process.
    """
    global _earlier
    if not _STATUS.exists():
        return None
    line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
    try:
        _CLEAR.write_text("5")  # sets the peak to what is resident now
    except OSError:
        return None
    peak = _kilobytes(line and line.split(":", 1)[1])
    _earlier = max(_earlier, peak or 0)
    return peak


def _kilobytes(field: str | None) -> int | None:
    return int(field.split()[0]) * 1024 if field else None


def device_memory(pid: int | None = None) -> int | None:
    """Bytes the CUDA driver counts for one process (this one by default); None where it cannot be asked.

    A container may hide its processes from the driver; then there is no figure, not a wrong one.
    """
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(",") for line in answer.splitlines() if "," in line]
    used = [mebibytes.strip() for owner, mebibytes in rows if owner.strip() == str(pid or os.getpid())]
    return sum(int(mebibytes) for mebibytes in used) * 2**20 if used and all(map(str.isdigit, used)) else None


def usable_cores() -> int:
    """Cores this process may run on, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed: every step of a training frees and asks for the same large blocks.

    Given back to the system and zeroed again, they cost a third of a training step on the CPU (measured).
    """
    _mallopt({-4: 0, -1: 2**31 - 1, -2: 2**26})  # M_MMAP_MAX, TRIM_THRESHOLD, TOP_PAD


def return_freed_memory() -> None:
    """Tell glibc to give large blocks back as soon as they are freed.

    By itself it learns from the first large ones to keep those that follow: a model that is converted layer
    by layer then holds every layer's scratch to the end (measured: 250 to 400 MiB instead of 90 for 200 MB).
    """
    _mallopt({-3: 2**18})  # M_MMAP_THRESHOLD, which setting keeps from growing


def give_back_freed_memory() -> None:
    """Give back what glibc keeps of small freed blocks; an unloaded model leaves thousands of them."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _mallopt(parameters: Mapping[int, int]) -> None:
    """Set parameters of glibc's allocator, in order; nothing where there is none."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in parameters.items():
            libc.mallopt(parameter, value)
