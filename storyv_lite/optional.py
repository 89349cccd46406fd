"""Optional packages: one clear line when one is missing, naming the extra that brings it."""

import importlib
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
