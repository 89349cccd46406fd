"""Reading: pieces of the story go through the language model, the states of the [IMG] tokens come out.

One pass per frame: what is still pending (the finished frame before) and the query of the frame to draw are
read in one call; then the query is dropped again. Where it is asked to, the model first writes on behind the
query, the likeliest token each time. Knows tokens, visual tokens and the cache; not captions' meaning, not
what the states become.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from storyv_lite.components import Dimensions
from storyv_lite.prompt import ImageQuery, Picture, Segment
from storyv_lite.runtime.backends.base import LanguageSession
from storyv_lite.runtime.kv_cache import VISUAL, KVCache, Piece
from storyv_lite.runtime.kv_widths import NARROW, NarrowStorage
from storyv_lite.runtime.token_table import TokenTable
from storyv_lite.runtime.tokenizer import LanguageTokenizer

ROWS = 1024  # of the token table that are compared at once
SCRATCH = -1  # stands for the frame of what no frame keeps


def make_piece(
    frame: int,
    segments: Sequence[Segment],
    tokenizer: LanguageTokenizer,
    dims: Dimensions,
    visual: NDArray[np.float32] | None = None,
) -> Piece:
    """Tokenize segments one by one; `visual` (visual tokens, hidden) stands in the slot of the picture."""
    ids: list[int] = []
    for segment in segments:
        match segment:
            case Picture():
                ids += [VISUAL] * dims.visual_tokens
            case ImageQuery():
                ids += range(dims.vocab_size - dims.image_tokens, dims.vocab_size)
            case text:
                ids += tokenizer.encode(text.text)
    return Piece(frame, tuple(ids), visual)


class Language:
    """The language model at work: its session, its token table and its tokenizer."""

    def __init__(
        self,
        session: LanguageSession,
        tokenizer: LanguageTokenizer,
        token_embedding: TokenTable,
        dims: Dimensions,
        width: str = "fp32",
        model: str = "",
    ) -> None:
        """`token_embedding` (vocab_size, hidden_size) gives rows; no more than `ROWS` are held at once.

        `width` is that of keys and values as the session computes them, `model` the hash of its files.
        """
        self.session = session
        self.width = width
        self.model = model
        self.begin = Piece(-1, (tokenizer.bos_token_id,))
        self._tokenizer = tokenizer
        self._table = token_embedding
        self._dims = dims

    def new_cache(self, capacity: int, width: str | None = None) -> KVCache:
        """Room for `capacity` tokens; `width` is that of stored keys and values, None for as computed."""
        if width is not None and width in NARROW and width != self.width:
            return KVCache(NarrowStorage.empty(self._dims, capacity, width), width, self.model)
        return KVCache(self.session.new_cache(capacity), self.width, self.model)

    def read(self, context: Sequence[Piece], query: Piece, cache: KVCache) -> NDArray[np.float32]:
        """States of the query's [IMG] tokens behind `context`, (image_tokens, hidden).

        What the cache already holds of the context is not read again. When the context does not begin with
        what the cache holds (a frame was dropped), the cache is built anew. Afterwards exactly the begin
        token and `context` are committed.
        """
        return self.answer(context, query, cache, 0)[0]

    def answer(
        self, context: Sequence[Piece], query: Piece, cache: KVCache, most: int
    ) -> tuple[NDArray[np.float32], str]:
        """What `read` returns, and the sentence that the model writes behind the [IMG] tokens.

        It has `most` tokens at most; one that has not ended by then is no sentence, and empty. The cache is
        left as `read` leaves it. A model has to have learned to write there (`align.answer_loss_scale`), with
        its token table as its head; what any other writes is hardly one.
        """
        wanted = [self.begin, *context]
        if cache.pieces != wanted[: len(cache.pieces)]:
            cache.clear()
        pending = wanted[len(cache.pieces) :]
        states = cache.append(self.session, self.embed([*pending, query]))
        written = self._write(states[0, -1], cache, most)
        cache.commit(pending)
        cache.rewind()
        return states[0, -self._dims.image_tokens :], written

    def _write(self, state: NDArray[np.float32], cache: KVCache, most: int) -> str:
        """The sentence of at most `most` tokens behind what was read last, whose last state is `state`."""
        if not most:
            return ""
        reads, ids = len(cache.calls), [self._likeliest(state)]
        while len(ids) < most and not self._tokenizer.decode(ids[-1:]).endswith("."):
            state = cache.append(self.session, self.embed([Piece(SCRATCH, (ids[-1],))]))[0, -1]
            ids.append(self._likeliest(state))
        del cache.calls[reads:]  # nothing that stays depends on them
        text = self._tokenizer.decode(ids).strip()
        length = len(self._tokenizer.encode(f" {text}"))  # half a letter is longer to read than to write
        return text if text.endswith(".") and length <= most else ""

    def _likeliest(self, state: NDArray[np.float32]) -> int:
        """The token that a state (hidden,) is nearest to; an [IMG] token is never written."""
        rows = np.arange(self._dims.vocab_size - self._dims.image_tokens)
        parts = np.split(rows, range(ROWS, len(rows), ROWS))
        return int(np.concatenate([self._table[part].astype(np.float32) @ state for part in parts]).argmax())

    def embed(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """Rows of the token table, and visual tokens in their slots, (1, tokens, hidden) in float32."""
        ids = np.array([token for piece in pieces for token in piece.ids], dtype=np.int64)
        rows = self._table[np.maximum(ids, 0)].astype(np.float32)
        visual = [piece.visual for piece in pieces if piece.visual is not None]
        if visual:
            rows[ids == VISUAL] = np.concatenate(visual)
        return rows[None]
