"""Optional packages: one clear line when one is missing, naming the extra that brings it, and one less when
one that is there talks of another that nothing here uses."""

import importlib
import importlib.util
import logging
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


def installed(module: str) -> bool:
    """Whether a package is there, without importing it."""
    return importlib.util.find_spec(module) is not None


def drop_kernel_notice() -> None:
    """Keep one notice of bitsandbytes off the terminal; whatever else it says is shown.

    transformers and diffusers import it wherever it is installed, and on processors with bf16 it then asks
    for a package with faster 4-bit kernels, which no part of this project calls.
    """
    talks = logging.getLogger("bitsandbytes.backends.cpu.ops")
    talks.addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
