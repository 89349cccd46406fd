"""The sessions of one component, which is one graph or several that run in order.

One graph stays loaded. Of several one is loaded at a time and dropped before the next, in every call: they
were cut so that the component need not fit into memory. Where it does fit as a whole, all stay loaded. Knows
when a part is loaded, not what it computes.
"""

from collections.abc import Callable, Mapping, Sequence

import onnxruntime as ort

from storyv_lite.errors import BundleError
from storyv_lite.memory import give_back_freed_memory
from storyv_lite.runtime.backends.base import Tensors

Load = Callable[[], ort.InferenceSession]
Run = Callable[[ort.InferenceSession, Tensors], Tensors]  # a part, and what is known by name; what it gives


class Parts:
    """Parts in order; what one gives, the later ones may take."""

    def __init__(self, loads: Sequence[Load], wanted: Sequence[str], whole: bool = False) -> None:
        """`wanted` are the names of the outputs of the whole. A single part is loaded at once, several if
        they are to be there as a `whole`.
        """
        self._loads, self._wanted = loads, wanted
        self._kept = [load() for load in loads] if whole or len(loads) == 1 else []
        self._takes: list[set[str]] = []  # inputs of every part that was ever reached

    def run(self, known: Mapping[str, object], use: Run) -> Tensors:
        """The outputs of the whole for inputs by name.

        Raises `BundleError` when a part needs what nobody gives, or an output is missing at the end.
        """
        if not self._loads:
            raise RuntimeError("the session is closed")
        tensors: Tensors = dict(known)  # type: ignore[arg-type]
        answers: Tensors = {}
        for index, load in enumerate(self._loads):
            given = self._part(index, self._kept[index] if self._kept else load(), tensors, use)
            answers |= {name: given[name] for name in self._wanted if name in given}
            later = self._takes[index + 1 :]
            if len(self._takes) == len(self._loads):
                tensors = {n: t for n, t in (tensors | given).items() if any(n in taken for taken in later)}
            else:
                tensors |= given
            if not self._kept:
                give_back_freed_memory()
        if missing := [name for name in self._wanted if name not in answers]:
            raise BundleError(f"no part gives {', '.join(missing)}", hint=_EXPORT)
        return answers

    @property
    def count(self) -> int:
        return len(self._loads)

    def close(self) -> None:
        self._loads, self._kept = (), []

    def _part(self, index: int, session: ort.InferenceSession, tensors: Tensors, use: Run) -> Tensors:
        taken = {value.name for value in session.get_inputs()}
        if missing := sorted(taken - tensors.keys()):
            raise BundleError(f"no part gives {', '.join(missing)}, which another takes", hint=_EXPORT)
        if len(self._takes) == index:
            self._takes.append(taken)
        return use(session, {name: tensors[name] for name in taken})


_EXPORT = "write the bundle again with `storyv-lite export`"
