"""Reading through the cache against reading everything again: how far apart, and how many tokens each takes.

Run `python -m storyv_lite.benchmarks.context [--bundle B]`. The frames of the story are the portraits of the
cast in turn, so nothing is drawn and the language model alone is compared; the rest of the prompt is real.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import check_written, failed
from storyv_lite.benchmarks.machine import versions
from storyv_lite.benchmarks.measure import PICNIC, repeat_captions
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.components import Component
from storyv_lite.errors import StoryVError
from storyv_lite.prompt import history, query

if TYPE_CHECKING:
    from storyv_lite.runtime.kv_cache import KVCache
    from storyv_lite.runtime.model import Model

FRAMES = 12
COMMAND = "python -m storyv_lite.benchmarks.context"
DOCUMENT = Path("docs/reference/context.md")
PAGE = """# Reading through the cache

A frame reads what its predecessor added to the context and its own query; the rest lies in the cache. Below,
the states of the [IMG] tokens read that way beside those of one pass over everything, and the tokens either
way has read when the story has so many frames. The difference is the largest of any element; states reach
{largest:.3g}.

{table}

Bundle `{name}` ({sha256}), language model in `{scheme}`, {tokens} tokens of context. Versions: {versions}.
Written again by:

```bash
{command}
```
"""


@dataclass(frozen=True)
class Reading:
    """What it takes to reach the [IMG] states of frame `frames`, either way."""

    frames: int
    difference: float  # largest absolute difference of the [IMG] states of the last frame
    cached_tokens: int  # read by the language model for all frames so far
    full_tokens: int


class Walk:
    """A story with given pictures, as the language model meets it."""

    def __init__(self, model: "Model", captions: Sequence[str]) -> None:
        from storyv_lite.runtime.images import read_portrait

        self.model = model
        portraits = [read_portrait(model.bundle.file(file)) for file in model.cast.values()]
        seen = [model.look(portrait) for portrait in portraits]
        self.queries = [model.piece(i, query(text)) for i, text in enumerate(captions)]
        self.history = [model.piece(i, history(text), seen[i % len(seen)]) for i, text in enumerate(captions)]
        self.capacity = 1 + sum(map(len, self.history)) + max(map(len, self.queries))

    def everything(self, index: int) -> tuple[NDArray[np.float32], int]:
        """[IMG] states (image_tokens, hidden) of one frame from an empty cache, and the tokens read."""
        return self._read(index, self.model.language.new_cache(self.capacity))

    def cached(self) -> list[tuple[NDArray[np.float32], int]]:
        """The same of every frame in order, through one cache."""
        cache = self.model.language.new_cache(self.capacity)
        return [self._read(index, cache) for index in range(len(self.queries))]

    def _read(self, index: int, cache: "KVCache") -> tuple[NDArray[np.float32], int]:
        states = self.model.language.read(self.history[:index], self.queries[index], cache)
        return states, cache.calls[-1][1]


def compare(walk: Walk) -> tuple[list[Reading], float]:
    """One reading per length from 2 frames on, and the largest state, to which the differences compare."""
    readings, cached_tokens, full_tokens, largest = [], 0, 0, 0.0
    for index, (states, count) in enumerate(walk.cached()):
        whole, all_tokens = walk.everything(index)
        cached_tokens += count
        full_tokens += all_tokens
        largest = max(largest, float(np.abs(whole).max()))
        if index:
            difference = float(np.abs(states - whole).max())
            readings.append(Reading(index + 1, difference, cached_tokens, full_tokens))
    return readings, largest


def markdown(bundle: Bundle, readings: Sequence[Reading], largest: float, command: str) -> str:
    table = [["frames", "largest difference", "tokens read through the cache", "tokens read without"]]
    for one in readings:
        table.append(
            [str(one.frames), f"{one.difference:.1e}", f"{one.cached_tokens:,}", f"{one.full_tokens:,}"]
        )
    return PAGE.format(
        table=markdown_table(table),
        largest=largest,
        name=bundle.name,
        sha256=bundle.sha256[:12],
        scheme=bundle.variant(Component.LANGUAGE_MODEL).scheme,
        tokens=bundle.model.context.tokens,
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
        command=command,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare stories of 2 to 12 frames, or as many as the bundle's context may hold."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Compare reading through the cache with without."
    )
    parser.add_argument("--bundle", help="bundle folder or name [as `storyv-lite render` chooses]")
    parser.add_argument("--write", type=Path, nargs="?", const=DOCUMENT, help=f"write the page [{DOCUMENT}]")
    asked = parser.parse_args(arguments)
    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.model import Model

    try:
        check_written(asked.write)
        bundle = Bundle.open(find_bundle(asked.bundle)[0])
        model = Model(bundle, open_backend("cpu"))
        captions = repeat_captions(PICNIC, min(FRAMES, bundle.model.context.frames))
        readings, largest = compare(Walk(model, captions))
    except StoryVError as fault:
        return failed(fault)
    wanted = f"{COMMAND} --bundle {asked.bundle} --write" if asked.bundle else f"{COMMAND} --write"
    page = markdown(bundle, readings, largest, wanted)
    print(page)
    if asked.write:
        asked.write.write_text(page, encoding="utf-8", newline="\n")
        print(f"wrote {asked.write}")
    print(json.dumps({"schema": 1, "largest": largest, "rows": [asdict(one) for one in readings]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
