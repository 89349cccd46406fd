"""What the runtime asks of a way to run components: three small protocols, numpy at every border, and one
error for whatever a library raises.

Weights, and keys and values unless someone asks for them, stay behind these lines.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.errors import BackendError, StoryVError

Tensors = dict[str, NDArray[Any]]


class Session(Protocol):
    """One loaded component."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Outputs by name, for inputs by name, as `components.signature` lists both."""

    def close(self) -> None:
        """Give the component's memory back; the session cannot run any more."""


class CacheStorage(Protocol):
    """Where keys and values lie; allocated by the backend, its length is the business of `KVCache`."""

    capacity: int  # tokens

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""

    def to_host(self, stop: int, start: int = 0) -> Tensors:
        """Copies of the tokens from `start` to `stop`.

        Named `key.LAYER` and `value.LAYER`, (1, heads, tokens, head_dim).
        """

    def from_host(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Put what `to_host` gave of the first tokens back."""


class LanguageSession(Session, Protocol):
    """The loaded language model, which reads behind what a cache holds."""

    def new_cache(self, capacity: int) -> CacheStorage:
        """Room for the keys and values of `capacity` tokens."""

    def read(
        self, inputs_embeds: NDArray[np.float32], storage: CacheStorage, past_length: int
    ) -> NDArray[np.float32]:
        """Read (1, S, hidden) behind the first `past_length` tokens of `storage`, which grows by S tokens.

        Returns the last hidden states (1, S, hidden). What lay behind `past_length` is overwritten.
        """


class Backend(Protocol):
    """A way to run components on one device."""

    name: str  # "ort" | "torch" | "trt"
    precision: str  # a word of `pytorch.PRECISIONS`, or "as exported"
    device: str  # "cpu" | "cuda"
    provider: str  # what runs the graphs, as its library calls it
    reason: str  # why this device
    threads: int  # CPU threads per component; results hold for one number of them

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        """Load one component. Of one in several parts each is loaded for every call, and dropped before the
        next, unless it is to be there as a `whole`. Raises `BundleError` or `BackendError`.
        """

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> LanguageSession:
        """Load the language model, as `open` does. Raises `BundleError` or `BackendError`."""

    def versions(self) -> dict[str, str]:
        """Libraries whose version may change a result."""


@contextmanager
def reported(component: str, hint: str) -> Iterator[None]:
    """What a library raises while a component is loaded or runs, as one clear error that ends in `hint`."""
    try:
        yield
    except StoryVError:
        raise
    except Exception as fault:  # the libraries have no common error class
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise BackendError(f"`{component}` failed: {reason}", hint=hint) from fault
