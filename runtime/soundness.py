"""Answers that no picture can be made of: NaN and constants, told with the component that gave them.

Knows arrays; a broken bundle or device draws black or grey squares, and a story of them looks finished. Which
frame it was is known to whoever draws it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.components import Component
from storyv_lite.errors import FrameError

_HINT = "draw it with another `--seed`, or export with a wider scheme: `storyv-lite export --fp32`"


def check_sound(component: Component, answer: NDArray[Any]) -> None:
    """Raise `FrameError` when an answer holds NaN or infinity, or one number only."""
    if not np.isfinite(answer).all():
        raise FrameError(f"`{component}` answered with NaN or infinity", _HINT)
    if answer.min() == answer.max():
        what = "a picture of one colour" if component is Component.VAE_DECODER else "one constant"
        raise FrameError(f"`{component}` answered with {what}", _HINT)
