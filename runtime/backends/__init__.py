"""Ways to run one component; the only part of the runtime that imports a framework."""

from storyv_lite.errors import BackendError
from storyv_lite.runtime.backends.base import Backend

DEVICES = ("auto", "cpu", "cuda")


def open_backend(device: str = "auto", threads: int | None = None) -> Backend:
    """The backend for one device; `auto` takes a CUDA device that works, else the CPU, and says why.

    `threads` is the number of CPU threads per component, None for one per core. Raises `BackendError`.
    """
    if device not in DEVICES:
        raise BackendError(
            f"`{device}` is no device; one of {', '.join(DEVICES)} is needed",
            hint="draw with `--device auto`",
        )
    from storyv_lite.runtime.backends.ort import OrtBackend

    return OrtBackend(device, threads)
