"""The bundle's two tokenizers: captions for the text encoder, prompt pieces for the language model.

The tokenizer.json files are the only truth. Special tokens are added here and nowhere else: a caption that
spells `[IMG0]` or `<s>` is plain text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from storyv_lite.errors import BundleError


@dataclass(frozen=True)
class EncodedCaption:
    """A caption as the text encoder reads it: `ids` (1, text_tokens) padded with the end token.

    `tokens` counts without padding; `names` are the characters named, with the position of the last piece of
    each mention (specification A.3).
    """

    ids: NDArray[np.int64]
    tokens: int
    names: tuple[str, ...]
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class Mention:
    """Where a caption names a character, in characters."""

    name: str
    start: int
    stop: int


def mentions(caption: str, names: Iterable[str]) -> list[Mention]:
    """Every place where `caption` spells one of `names` as a word of its own, in order, in any case."""
    longest_first = sorted(names, key=len, reverse=True)
    if not longest_first:
        return []
    pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)"
    spelled = {name.casefold(): name for name in longest_first}
    found = re.finditer(pattern, caption, re.IGNORECASE)
    return [
        Mention(spelled[m[0].casefold()], m.start(), m.end()) for m in found if m[0].casefold() in spelled
    ]


class TextTokenizer:
    """Captions for the text encoder: begin token, pieces, end token, end tokens as padding."""

    def __init__(self, file: Path, text_tokens: int) -> None:
        self._tokenizer = _load(file)
        self.text_tokens = text_tokens
        self._bos = _special(self._tokenizer, file, "<|startoftext|>")
        self._eos = _special(self._tokenizer, file, "<|endoftext|>")

    def count(self, caption: str) -> int:
        """Positions a caption needs, begin and end included; more than `text_tokens` cannot be read."""
        return len(self._tokenizer.encode(caption, add_special_tokens=False).ids) + 2

    def encode(self, caption: str, names: Iterable[str] = ()) -> EncodedCaption:
        """Raises `ValueError` when the caption needs more than `text_tokens` positions: nothing is cut."""
        encoding = self._tokenizer.encode(caption, add_special_tokens=False)
        tokens = len(encoding.ids) + 2
        if tokens > self.text_tokens:
            raise ValueError(f"{tokens} tokens, {self.text_tokens} fit")
        ids = np.full((1, self.text_tokens), self._eos, dtype=np.int64)
        ids[0, 0] = self._bos
        ids[0, 1 : tokens - 1] = encoding.ids
        found = mentions(caption, names)
        # a piece may also hold the space before the name, so the one that covers its last letter is meant
        last = [max(i for i, (start, _) in enumerate(encoding.offsets) if start < m.stop) + 1 for m in found]
        return EncodedCaption(ids, tokens, tuple(m.name for m in found), np.array(last, dtype=np.int64))


class LanguageTokenizer:
    """Pieces of the prompt for the language model, each by itself and without special tokens."""

    def __init__(self, file: Path, bos_token_id: int) -> None:
        self._tokenizer = _load(file)
        self.bos_token_id = bos_token_id

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens as text; special ones are none."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def _load(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as fault:  # the library raises plain Exception
        raise BundleError(f"`{file}` is no tokenizer: {fault}") from fault
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special(tokenizer: Tokenizer, file: Path, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise BundleError(f"`{file}` does not know `{token}`")
    return found
