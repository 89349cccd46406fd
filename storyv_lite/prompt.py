"""The interleaved prompt of the story model: the only home of these strings.

Knows the grammar, not the tokenizer and not the cache. A finished frame is written picture first, caption
second (history); the frame to draw is written caption first, [IMG] tokens last (query), so the prompt is not
append-only: the query is read, used and rewound (StoryGPT-V, specification C.2 and D.4).
Each `Text` is tokenized by itself, as the reference does; the begin token stands once, before the first.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A run of plain text."""

    text: str


@dataclass(frozen=True)
class Picture:
    """The slot of one frame's visual tokens."""


@dataclass(frozen=True)
class ImageQuery:
    """The slot of the [IMG0]..[IMGr-1] tokens whose last states become the conditioning."""


Segment = Text | Picture | ImageQuery


def history(caption: str) -> tuple[Segment, ...]:
    """A finished frame: ` Image: <img>`, its visual tokens, `</img> Caption: ` and the caption."""
    return Text(" Image: <img>"), Picture(), Text(f"</img> Caption: {caption}")


def text_history(caption: str) -> tuple[Segment, ...]:
    """A finished frame without its picture (captions-only context)."""
    return (Text(f" Caption: {caption}"),)


def query(caption: str) -> tuple[Segment, ...]:
    """The frame to draw: its caption, then the [IMG] tokens."""
    return Text(f" Caption: {caption} Image: "), ImageQuery()
