"""What the language model knows of one story while it is drawn: finished frames, read into a cache.

Knows pieces and how much of them may be held; which of them are held is decided in `context`. A picture is
looked at once. A frame that no later context can hold is forgotten, so a story of any length takes bounded
memory. A caption that leaves names out may stand in the context spelled out, as the model itself wrote it:
then every reference has its name close by.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyv_lite.components import Component
from storyv_lite.manifest import Context
from storyv_lite.prompt import Segment, history, query, text_history
from storyv_lite.runtime.context import Finished, grow, lasting, most_tokens
from storyv_lite.runtime.context_size import refuse_small
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.kv_cache import KVCache, Piece
from storyv_lite.runtime.model import Model
from storyv_lite.story import Caption


@dataclass(frozen=True)
class Reading:
    """How one query was read."""

    tokens: int = 0  # read for it by the language model
    context: tuple[int, ...] = ()  # finished frames that it was read behind
    dropped: tuple[int, ...] = ()  # those left out from here on
    reduced: bool = False  # some finished frames are left out, because the story does not fit the context
    rebuilt: bool = False  # what stays of the context was read anew
    tokens_in_cache: int = 0  # keys and values that were there, the query's included
    spelled: str = ""  # how the frame is told from now on, where not by its caption


class StoryContext:
    """Remembers frames and reads queries behind them."""

    def __init__(
        self,
        model: Model,
        captions: Sequence[Caption],
        pictures: bool,
        limits: Context,
        kv_cache: str | None = None,
        spell_out: bool = False,
    ) -> None:
        """`captions` are those of the whole story. Without `pictures` a finished frame is its caption alone.

        `kv_cache` is the width of stored keys and values, None for as computed. With `spell_out` a finished
        frame whose caption leaves names out stands in the context as the model spelled it out.
        """
        self._model = model
        self._captions = captions
        self._pictures = pictures
        self._limits = limits
        self._width = kv_cache
        self._writes = most_written(model) if spell_out else 0
        self._spelled: dict[int, str] = {}  # frames that are told otherwise than by their captions
        self._history = history if pictures else text_history
        self._frames: list[int] = []  # of the story, in the order of remembering; others go by place in it
        self._pieces: dict[int, Piece] = {}  # of those not forgotten
        self._story: list[Finished] = []
        self._cache: KVCache | None = None
        self._kept: tuple[int, ...] = ()  # those that the last query was read behind
        self._known = 0  # how many there were then

    def remember(self, index: int, caption: str, image: Pixels) -> None:
        """Add a finished frame; its picture is encoded here, once for the whole story."""
        seen = self._model.look(image) if self._pictures else None
        caption = self._spelled.pop(index, caption)
        piece = self._model.piece(index, self._history(caption), seen)
        self._pieces[len(self._frames)] = piece
        self._frames.append(index)
        placed = self._model.names_place(caption)
        self._story.append(Finished(len(piece), self._model.named(caption), placed))

    def read(self, index: int, caption: str) -> tuple[NDArray[np.float32], Reading]:
        """States of the [IMG] tokens (image_tokens, hidden), and how they were read."""
        if self._cache is None:
            self._cache = self._model.language.new_cache(self._capacity(), self._width)
        wanted = self._model.piece(index, query(caption))
        before = self._kept
        whole = (*before, *range(self._known, len(self._frames)))
        self._kept = grow(before, self._story, len(wanted) + self._writes, self._limits)
        self._known = len(self._frames)
        kept = [self._pieces[place] for place in self._kept]
        with self._model.residency.use(Component.LANGUAGE_MODEL):  # once for all that is written
            states, written = self._model.language.answer(kept, wanted, self._cache, self._writes)
        if spelled := self._spell_out(caption, written):
            self._spelled[index] = spelled
        if self._kept != whole:
            self._forget()
        start, length = self._cache.calls[-1]
        return states, Reading(
            length,
            self._indices(self._kept),
            self._indices(sorted({*whole} - {*self._kept})),
            len(self._kept) < len(self._frames),
            self._kept[: len(before)] != before,
            start + length,
            spelled,
        )

    def _spell_out(self, caption: str, written: str) -> str:
        """What the model wrote, where it names all whom the caption names and somebody else; else nothing."""
        return written if self._model.named(written) > self._model.named(caption) else ""

    def _indices(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._frames[place] for place in places)

    def _forget(self) -> None:
        """Let go of frames that are not held and never will be again."""
        needed = {*self._kept, *lasting(self._story)}
        self._pieces = {place: piece for place, piece in self._pieces.items() if place in needed}

    def _capacity(self) -> int:
        """Tokens the cache needs at most: the whole story, or as much of it as the context may hold."""
        texts = [caption.text for caption in self._captions]
        told, asked = lengths(self._model, texts, self._writes > 0, self._history)
        return most_tokens(told, asked, self._limits)


def most_written(model: Model) -> int:
    """Tokens that the model may write for one frame: what it learned to write fits the caption encoder."""
    return model.dims.text_tokens


def lengths(
    model: Model,
    captions: Sequence[str],
    spell_out: bool,
    finished: Callable[[str], tuple[Segment, ...]] = history,
) -> tuple[list[int], list[int]]:
    """Tokens that each frame takes at most, once when it is `finished` and once when it is asked for."""
    told = [len(model.piece(0, finished(text))) for text in captions]
    asked = [len(model.piece(0, query(text))) for text in captions]
    if not spell_out:
        return told, asked
    written = most_written(model)
    spelled = len(model.piece(0, finished(""))) + written
    return [max(length, spelled) for length in told], [length + written for length in asked]


def check_room(
    model: Model, captions: Sequence[Caption], tokens: int, kv_cache: str | None, spell_out: bool = False
) -> None:
    """Raise `ConfigError` when `tokens` do not hold every query and the frame before it."""
    told, queries = lengths(model, [caption.text for caption in captions], spell_out)
    needed = [1 + asked + before for asked, before in zip(queries, [0, *told[:-1]], strict=True)]
    most = max(needed)
    refuse_small(tokens, most, needed.index(most) + 1, model.token_bytes(kv_cache), spell_out)
