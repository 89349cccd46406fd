"""What the language model knows of one story while it is drawn: finished frames, read into a cache.

Knows pieces and how much of them may be held; which of them are held is decided in `context`. A picture is
looked at once. A frame that no later context can hold is forgotten, so a story of any length takes bounded
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyv_lite.manifest import Context
from storyv_lite.prompt import history, query, text_history
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


class StoryContext:
    """Remembers frames and reads queries behind them."""

    def __init__(
        self,
        model: Model,
        captions: Sequence[Caption],
        pictures: bool,
        limits: Context,
        kv_cache: str | None = None,
    ) -> None:
        """`captions` are those of the whole story. Without `pictures` a finished frame is its caption alone.

        `kv_cache` is the width of stored keys and values, None for as computed.
        """
        self._model = model
        self._captions = captions
        self._pictures = pictures
        self._limits = limits
        self._width = kv_cache
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
        self._kept = grow(before, self._story, len(wanted), self._limits)
        self._known = len(self._frames)
        kept = [self._pieces[place] for place in self._kept]
        states = self._model.language.read(kept, wanted, self._cache)
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
        )

    def _indices(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(self._frames[place] for place in places)

    def _forget(self) -> None:
        """Let go of frames that are not held and never will be again."""
        needed = {*self._kept, *lasting(self._story)}
        self._pieces = {place: piece for place, piece in self._pieces.items() if place in needed}

    def _capacity(self) -> int:
        """Tokens the cache needs at most: the whole story, or as much of it as the context may hold."""
        texts = [caption.text for caption in self._captions]
        told = [len(self._model.piece(0, self._history(text))) for text in texts]
        asked = [len(self._model.piece(0, query(text))) for text in texts]
        return most_tokens(told, asked, self._limits)


def check_room(model: Model, captions: Sequence[Caption], tokens: int, kv_cache: str | None) -> None:
    """Raise `ConfigError` when `tokens` do not hold every query and the frame before it."""
    queries = [len(model.piece(0, query(caption.text))) for caption in captions]
    before = [0, *(len(model.piece(0, history(caption.text))) for caption in captions[:-1])]
    needed = [1 + asked + told for asked, told in zip(queries, before, strict=True)]
    most = max(needed)
    refuse_small(tokens, most, needed.index(most) + 1, model.token_bytes(kv_cache))
