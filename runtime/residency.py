"""What is loaded when: components of one bundle on one backend, as a plan says.

Knows loading and unloading; why something stays is the plan's business. What is not kept is there inside
`use` alone, and its memory has gone back to the system afterwards. The story's keys and values are no part
of this: they lie in its cache, whose storage outlives the language model that filled it.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.memory import give_back_freed_memory, return_freed_memory
from storyv_lite.runtime.backends.base import Backend, CacheStorage, LanguageSession, Session, Tensors


class Residency:
    """Loads and unloads the components of one bundle."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        kept: Collection[Component] | None = None,
        whole: Collection[Component] = (),
    ) -> None:
        """`kept` stay loaded once they are; None: all of them. All parts of `whole` are there at once."""
        self._bundle = bundle
        self._backend = backend
        self._kept, self._whole = kept, whole
        self._sessions: dict[Component, Session] = {}
        self._language: LanguageSession | None = None
        self._uses: Counter[Component] = Counter()  # blocks of `use` that are open
        if kept is not None:
            return_freed_memory()

    def stays(self, component: Component) -> bool:
        """Whether a component stays loaded when its use ends."""
        return self._kept is None or component in self._kept

    def load(self, component: Component) -> Session:
        """The loaded component; raises `BundleError` or `BackendError`."""
        if component is Component.LANGUAGE_MODEL:
            return self.load_language_model()
        if component not in self._sessions:
            self._sessions[component] = self._backend.open(self._bundle, component, component in self._whole)
        return self._sessions[component]

    def load_language_model(self) -> LanguageSession:
        """The loaded language model; raises `BundleError` or `BackendError`."""
        if self._language is None:
            whole = Component.LANGUAGE_MODEL in self._whole
            self._language = self._backend.open_language_model(self._bundle, whole)
        return self._language

    @contextmanager
    def use(self, component: Component) -> Iterator[Session]:
        """The component inside the block; behind the outermost one, it is unloaded if it is not kept.

        With a plan, what it worked in has gone back to the system, too.
        """
        self._uses[component] += 1
        try:
            yield self.load(component)
        finally:
            self._uses[component] -= 1
            outermost = not self._uses[component]
            if outermost and not self.stays(component):
                self.unload(component)
            elif outermost and self._kept is not None:
                give_back_freed_memory()

    def language_session(self) -> LanguageSession:
        """The language model: the loaded one, or with a plan one that is there as the plan says."""
        return self.load_language_model() if self._kept is None else _PlannedLanguageModel(self)

    def prewarm(self) -> None:
        """Load what is kept, in the plan's order."""
        for component in self._kept or ():
            self.load(component)

    def unload(self, component: Component) -> None:
        """Give a component's memory back; nothing happens when it is not loaded."""
        session = self._sessions.pop(component, None)
        if component is Component.LANGUAGE_MODEL:
            session, self._language = self._language, None
        if session is not None:
            session.close()
            del session
            if self._kept is not None:
                give_back_freed_memory()

    def close(self) -> None:
        """Unload everything; the next use loads again."""
        for component in (*self._sessions, Component.LANGUAGE_MODEL):
            self.unload(component)


class _PlannedLanguageModel:
    """The language model that is loaded for each read, and gone between reads if it is not kept."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        with self._residency.use(Component.LANGUAGE_MODEL) as session:
            return session.run(inputs)

    def new_cache(self, capacity: int) -> CacheStorage:
        """It stays loaded until the first read, which comes next."""
        return self._residency.load_language_model().new_cache(capacity)

    def read(
        self, inputs_embeds: NDArray[np.float32], storage: CacheStorage, past_length: int
    ) -> NDArray[np.float32]:
        with self._residency.use(Component.LANGUAGE_MODEL):
            return self._residency.load_language_model().read(inputs_embeds, storage, past_length)

    def close(self) -> None:
        self._residency.unload(Component.LANGUAGE_MODEL)
