"""Optional packages: one clear line when one is missing, naming the extra that brings it, and one less when
one that is there talks of another that nothing here uses."""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType

from storyv_lite.errors import MissingDependency


def require(module: str, extra: str) -> ModuleType:
    """Import `module` or raise `MissingDependency` naming the install command for `extra`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"`{missing.name}` is not installed, and this command needs it",
            hint=f"pip install 'storyv-lite[{extra}]'",
        ) from missing


def require_export() -> None:
    """Raise `MissingDependency` where one of the packages that an export uses is missing."""
    for module in ("torch", "transformers", "diffusers", "accelerate", "optimum", "onnx", "onnxscript"):
        require(module, "export")


def installed(module: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(module) is not None


# Where bitsandbytes talks, and of what. Wherever it is imported on a processor with bf16 it asks for a
# package with faster 4-bit kernels, which no part of this project calls. Its 8-bit layers tell at every call
# that they round activations, as they always do.
_NOTICES = (
    ("bitsandbytes.backends.cpu.ops", "gemm_4bit_forward"),
    ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
)


def drop_notices() -> None:
    """Keep two notices of bitsandbytes off the terminal; whatever else it says is shown."""
    for logger, notice in _NOTICES:
        logging.getLogger(logger).addFilter(_without(notice))


def _without(notice: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: notice not in str(record.msg)
