"""Latents of frames that are drawn and not yet decoded, kept on the disk: a failed decode costs no drawing.

Knows files and what they are valid for (a key that says how the frame was drawn); not what latents are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from storyv_lite.runtime.disk import write_file

_LATENTS, _KEY = "latents", "key"


class LatentStore(Protocol):
    """Where a frame's latents go before they are decoded, and are looked for before it is drawn."""

    def get(self, frame: int) -> NDArray[np.float32] | None:
        """Latents (1, channels, size, size) of a frame (from 0), None where there are none."""

    def put(self, frame: int, latents: NDArray[np.float32]) -> None:
        """Keep them. May raise `OSError`."""


class SavedLatents:
    """Latents (1, channels, size, size) by frame (from 0), each a hidden file beside the frames.

    What was written under another key is as good as not there: it belongs to another picture.
    """

    def __init__(self, folder: Path, key: Callable[[], str]) -> None:
        """`key()` holds everything that decides the latents of the frame at hand."""
        self._folder = folder
        self._key = key

    def get(self, frame: int) -> NDArray[np.float32] | None:
        """What was put there, None where there is nothing that can be used."""
        try:
            with safe_open(self._file(frame), framework="numpy") as file:
                if (file.metadata() or {}).get(_KEY) == self._key():
                    return np.asarray(file.get_tensor(_LATENTS), dtype=np.float32)
        except (OSError, SafetensorError):
            pass  # none, or torn: the frame is drawn again
        return None

    def put(self, frame: int, latents: NDArray[np.float32]) -> None:
        """Raises `OSError`."""
        write_file(self._file(frame), save({_LATENTS: np.ascontiguousarray(latents)}, {_KEY: self._key()}))

    def drop(self, frame: int) -> None:
        """Forget one frame's: its picture is there."""
        self._file(frame).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget all."""
        for file in self._folder.glob(".latents-*"):
            file.unlink(missing_ok=True)

    def _file(self, frame: int) -> Path:
        return self._folder / f".latents-{frame + 1}"
