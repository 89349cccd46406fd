"""A backend whose calls go through functions of the caller's: to hear what is asked, or change the answers.

Knows how a backend is asked; not what is done with a call. Runs no framework of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.runtime.backends.base import Backend, CacheStorage, LanguageSession, Session, Tensors

Floats = NDArray[np.float32]
OnRun = Callable[[Component, Session, Mapping[str, NDArray[Any]]], Tensors]  # is to run the session
OnRead = Callable[[LanguageSession, Floats, CacheStorage, int], Floats]  # is to read with the session


class Relay:
    """What `backend` opens, behind `on_run` and, for the language model, `on_read`."""

    def __init__(self, backend: Backend, on_run: OnRun, on_read: OnRead) -> None:
        self._backend, self._on_run, self._on_read = backend, on_run, on_read
        self.name, self.device, self.provider = backend.name, backend.device, backend.provider
        self.precision, self.reason, self.threads = backend.precision, backend.reason, backend.threads

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        """Load one component. Raises `BundleError` or `BackendError`."""
        return _Relayed(self._backend.open(bundle, component, whole), component, self._on_run)

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> LanguageSession:
        """Load the language model. Raises `BundleError` or `BackendError`."""
        session = self._backend.open_language_model(bundle, whole)
        return _RelayedLanguage(session, self._on_run, self._on_read)

    def versions(self) -> dict[str, str]:
        return self._backend.versions()


class _Relayed:
    def __init__(self, session: Session, component: Component, on_run: OnRun) -> None:
        self._session, self._component, self._on_run = session, component, on_run

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._on_run(self._component, self._session, inputs)

    def close(self) -> None:
        self._session.close()


class _RelayedLanguage(_Relayed):
    def __init__(self, session: LanguageSession, on_run: OnRun, on_read: OnRead) -> None:
        super().__init__(session, Component.LANGUAGE_MODEL, on_run)
        self._language, self._on_read = session, on_read

    def new_cache(self, capacity: int) -> CacheStorage:
        return self._language.new_cache(capacity)

    def read(self, inputs_embeds: Floats, storage: CacheStorage, past_length: int) -> Floats:
        return self._on_read(self._language, inputs_embeds, storage, past_length)
