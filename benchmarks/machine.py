"""The machine a measurement was made on: processor, cores, memory, system, GPU, and versions of libraries.

Knows what the operating system tells; names no folder and no host.
"""

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from storyv_lite import __version__
from storyv_lite.memory import usable_cores

LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow")
VECTOR_UNITS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Machine:
    """What a figure depends on besides the program; a fact the system does not tell is None or empty."""

    cpu: str
    cores: int  # that this process may use
    vector_units: tuple[str, ...]  # those that decide how fast 8-bit arithmetic is
    memory_bytes: int | None
    system: str
    gpus: tuple[str, ...]  # name, memory, driver
    load_average: float | None  # processes waiting for a core in the last minute; 0 is a quiet machine

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def this_machine() -> Machine:
    cpuinfo = _cpuinfo(Path("/proc/cpuinfo"))
    flags = (cpuinfo.get("flags") or cpuinfo.get("Features") or "").split()
    return Machine(
        cpu=cpuinfo.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        vector_units=tuple(unit for unit in VECTOR_UNITS if unit in flags),
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpus=query_gpus("name,memory.total,driver_version"),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Versions of this program, of Python, and of those `libraries` that are installed."""
    found = {"storyv-lite": __version__, "python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def query_gpus(fields: str) -> tuple[str, ...]:
    """One line per NVIDIA GPU with `fields` as nvidia-smi names them; nothing where it cannot be asked."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in answer.splitlines() if line.strip())


def _cpuinfo(file: Path) -> dict[str, str]:
    """The first processor's fields; Linux alone has this file."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
