"""Answers that no picture can be made of: NaN and constants, told with frame and component.

Knows arrays; a broken bundle or device draws black or grey squares, and a story of them looks finished.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.components import Component
from storyv_lite.errors import BackendError

_HINT = "export the bundle again with a wider scheme, such as `storyv-lite export --fp16`"


def check_sound(component: Component, answer: NDArray[Any], frame: int) -> None:
    """Raise `BackendError` when an answer holds NaN or infinity, or one number only. `frame` is from 0."""
    if not np.isfinite(answer).all():
        raise BackendError(f"frame {frame + 1}: `{component}` answered with NaN or infinity", hint=_HINT)
    if answer.min() == answer.max():
        what = "a picture of one colour" if component is Component.VAE_DECODER else "one constant"
        raise BackendError(f"frame {frame + 1}: `{component}` answered with {what}", hint=_HINT)
