"""Ways to run one component; the only part of the runtime that imports a framework."""

from storyv_lite.errors import BackendError
from storyv_lite.optional import require
from storyv_lite.runtime.backends.base import Backend

DEVICES = ("auto", "cpu", "cuda")


def open_backend(device: str = "auto", threads: int | None = None) -> Backend:
    """What draws with a bundle; `auto` takes a CUDA device that works, else the CPU, and says why.

    `threads` is the number of CPU threads per component, None for one per core. Raises `BackendError`.
    """
    _check_device(device)
    from storyv_lite.runtime.backends.ort import OrtBackend

    return OrtBackend(device, threads)


def open_torch_backend(
    device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Backend:
    """What draws with a checkpoint, in `precision` (None: fp32 on the CPU, fp16 on CUDA).

    Raises `MissingDependency`, `ConfigError` for an unknown precision, and `BackendError`.
    """
    _check_device(device)
    for module in ("torch", "transformers", "diffusers", "accelerate"):
        require(module, "torch")
    from storyv_lite.runtime.backends.pytorch import TorchBackend

    return TorchBackend(device, precision, threads)


def _check_device(device: str) -> None:
    if device not in DEVICES:
        raise BackendError(
            f"`{device}` is no device; one of {', '.join(DEVICES)} is needed",
            hint="draw with `--device auto`",
        )
