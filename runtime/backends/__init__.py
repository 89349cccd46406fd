"""Ways to run one component; the only part of the runtime that imports a framework."""

from storyv_lite.errors import BackendError
from storyv_lite.optional import require
from storyv_lite.runtime.backends.base import Backend

DEVICES = ("auto", "cpu", "cuda")
PROVIDERS = ("auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx")


def open_backend(device: str = "auto", threads: int | None = None, provider: str = "auto") -> Backend:
    """What draws with a bundle; `auto` takes CUDA where it works, else the CPU, and says why.

    `threads` is the number of CPU threads per component, None for one per core. Raises `BackendError`.
    """
    _check("device", device, DEVICES)
    _check("provider", provider, PROVIDERS)
    if "auto" not in (device, provider) and (device == "cpu") != (provider == "cpu"):
        raise BackendError(
            f"`--provider {provider}` does not run on `--device {device}`", hint="give one of the two"
        )
    chosen, reason = (provider, "asked for") if provider != "auto" else (device, "asked for")
    if chosen == "auto":
        from storyv_lite.runtime.backends.providers import problem

        fault = problem("cuda")
        chosen, reason = ("cpu", f"no CUDA: {fault}") if fault else ("cuda", "a CUDA device works")
    if chosen in ("tensorrt", "tensorrt-rtx"):
        from storyv_lite.runtime.backends.trt import TrtBackend

        return TrtBackend(chosen, threads)
    from storyv_lite.runtime.backends.ort import OrtBackend

    return OrtBackend(chosen, reason, threads)


def provider_asked(made_with: str, device: str = "auto") -> str:
    """What `--provider` has to be to draw with a provider that a receipt names, on `device`.

    `auto` where it does not run on that device, and where the provider is none of ours.
    """
    from storyv_lite.runtime.backends.providers import PROVIDERS as FULL_NAMES

    asked = next((name for name, full in FULL_NAMES.items() if made_with in (name, full)), "auto")
    return asked if device == "auto" or (device == "cpu") == (asked == "cpu") else "auto"


def open_torch_backend(
    device: str = "auto", precision: str | None = None, threads: int | None = None
) -> Backend:
    """What draws with a checkpoint, in `precision` (None: fp32 on the CPU, fp16 on CUDA).

    Raises `MissingDependency`, `ConfigError` for an unknown precision, and `BackendError`.
    """
    _check("device", device, DEVICES)
    for module in ("torch", "transformers", "diffusers", "accelerate"):
        require(module, "torch")
    from storyv_lite.runtime.backends.pytorch import TorchBackend

    return TorchBackend(device, precision, threads)


def _check(kind: str, asked: str, known: tuple[str, ...]) -> None:
    if asked not in known:
        raise BackendError(
            f"`{asked}` is no {kind}; one of {', '.join(known)} is needed", hint=f"draw with `--{kind} auto`"
        )
