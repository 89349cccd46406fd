"""A whole story as one sequence in which every frame is a target.

The runtime reads a frame's query, rewinds it and commits the finished frame (specification D.4). Here all of
it stands in one row: [BOS] [query 0] [history 0] [query 1] [history 1] ... A query is seen by itself alone, a
history by everything after it, and both start at the position where the committed prefix ended, so one
forward pass computes exactly what the cached runtime computes frame by frame.
Knows ids, labels, positions and who sees whom; no weights and no captions' meaning.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from storyv_lite.prompt import ImageQuery, Picture, Segment, Text

IGNORED = -100  # torch's label for "no loss here"


class Kind(IntEnum):
    """What stands at a position."""

    TEXT = 0
    PICTURE = 1  # one visual token
    IMAGE = 2  # one [IMG] token
    ANSWER = 3  # the plain caption that follows the [IMG] tokens while the language model learns
    PADDING = 4


@dataclass(frozen=True)
class Vocabulary:
    """Text to ids, and the ids that are no text. [IMG] ids are the last `image_tokens` rows of the table."""

    encode: Callable[[str], list[int]]  # without special tokens
    bos_token_id: int
    eos_token_id: int
    first_image_token_id: int
    image_tokens: int
    visual_tokens: int


@dataclass(frozen=True)
class PackedFrame:
    """One frame: `query` is None where the frame is only context, `history` is None after the last frame."""

    query: tuple[Segment, ...] | None
    history: tuple[Segment, ...] | None
    answer: str = ""


@dataclass(frozen=True)
class PackedStories:
    """Padded stories, all (B, L).

    `labels[j]` is the token that position j predicts, not the one that stands there.
    `blocks` is 0 for [BOS] and padding, positive for histories and negative for queries.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    blocks: Tensor
    kinds: Tensor

    def to(self, device: torch.device) -> "PackedStories":
        return PackedStories(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


Token = tuple[int, Kind]


def tokens_of(segments: Sequence[Segment], vocabulary: Vocabulary) -> list[Token]:
    """The tokens of a query or a history; pieces are encoded apart, slots become placeholders with id 0."""
    tokens: list[Token] = []
    for segment in segments:
        match segment:
            case Text(text):
                tokens += [(token, Kind.TEXT) for token in vocabulary.encode(text)]
            case Picture():
                tokens += [(0, Kind.PICTURE)] * vocabulary.visual_tokens
            case ImageQuery():
                first = vocabulary.first_image_token_id
                tokens += [(first + i, Kind.IMAGE) for i in range(vocabulary.image_tokens)]
    return tokens


def pack(frames: Sequence[PackedFrame], vocabulary: Vocabulary) -> PackedStories:
    """One story as a batch of one.

    Labels follow specification C.3: text and [IMG0] are predicted, [IMG1].. and visual tokens are not. The
    first token of a query is predicted by the end of what is committed.
    """
    rows: list[tuple[int, int, int, int, int]] = [(vocabulary.bos_token_id, IGNORED, 0, 0, Kind.TEXT)]
    committed, last = 1, 0  # length of the prefix, and the row in which it ends
    for index, frame in enumerate(frames, start=1):
        if frame.query is not None:
            tokens = tokens_of(frame.query, vocabulary)
            if frame.answer:
                words = [*vocabulary.encode(frame.answer), vocabulary.eos_token_id]
                tokens += [(word, Kind.ANSWER) for word in words]
            rows[last] = (rows[last][0], _label(tokens[0], vocabulary), *rows[last][2:])
            rows += _block(tokens, committed, -index, vocabulary)
        if frame.history is not None:
            tokens = tokens_of(frame.history, vocabulary)
            rows += _block(tokens, committed, index, vocabulary)
            committed, last = committed + len(tokens), len(rows) - 1
    return PackedStories(*torch.tensor(rows).T[:, None].unbind())


def _block(
    tokens: list[Token], start: int, block: int, vocabulary: Vocabulary
) -> list[tuple[int, int, int, int, int]]:
    labels = [_label(token, vocabulary) for token in tokens[1:]] + [IGNORED]
    return [
        (token, label, start + offset, block, kind)
        for offset, ((token, kind), label) in enumerate(zip(tokens, labels, strict=True))
    ]


def _label(token: Token, vocabulary: Vocabulary) -> int:
    identifier, kind = token
    predicted = kind in (Kind.TEXT, Kind.ANSWER) or identifier == vocabulary.first_image_token_id
    return identifier if predicted and kind != Kind.PICTURE else IGNORED


def collate(stories: Sequence[PackedStories], pad_token_id: int) -> PackedStories:
    """Stories of different lengths as one batch, padded at the end."""
    padding = {
        "input_ids": pad_token_id,
        "labels": IGNORED,
        "position_ids": 0,
        "blocks": 0,
        "kinds": int(Kind.PADDING),
    }
    return PackedStories(
        *(
            pad_sequence([row for s in stories for row in getattr(s, name)], True, padding_value=value)
            for name, value in padding.items()
        )
    )


def visible(stories: PackedStories, bottleneck: bool = False) -> Tensor:
    """Who sees whom, (B, L, L) bool: [row, column] is whether row reads column.

    With `bottleneck` an answer sees the [IMG] tokens of its query and itself, nothing else: what the caption
    and the story mean has to pass through the [IMG] tokens, as it has to when they condition a picture.
    """
    blocks, kinds = stories.blocks, stories.kinds
    length = blocks.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=blocks.device).tril()
    same = blocks[:, :, None] == blocks[:, None, :]
    seen = causal & (same | (blocks >= 0)[:, None, :])
    if bottleneck:
        through = (kinds == Kind.IMAGE) | (kinds == Kind.ANSWER)
        seen &= (kinds != Kind.ANSWER)[:, :, None] | (same & through[:, None, :])
    return seen


def additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """`seen` (B, L, L) as the (B, 1, L, L) mask that transformers adds to attention scores."""
    # Half the minimum: the smallest fp32 number would become -inf in bf16.
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(
        ~seen, torch.finfo(dtype).min / 2
    )[:, None]
