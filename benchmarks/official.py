"""Reading a story as the official StoryGPT-V does, and as this project does: passes and seconds.

Run `python -m storyv_lite.benchmarks.official [--bundle B] [--write]`. Both have the same weights, captions
and finished pictures, which the cartoon world draws. The official procedure (specification D.2, D.4) looks at
all earlier pictures again for every frame and reads the whole prompt twice, from nothing: once for the [IMG]
token that is forced anyway, once for the states. Its logits are not computed, and nor are the portraits that
it encodes for every frame without use. What is equal in both, the drawing, is left out.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import check_written, failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.machine import this_machine
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError, StoryVError
from storyv_lite.manifest import Context
from storyv_lite.prompt import ImageQuery, history, query
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import Backend, CacheStorage, LanguageSession, Session, Tensors
from storyv_lite.runtime.backends.relay import Relay
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.kv_cache import Piece
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story

LENGTHS = (4, 10, 20, 50)
ROUNDS = 3
COMMAND = "python -m storyv_lite.benchmarks.official"
RECORD = Path("benchmarks/results/official.json")
DOCUMENT = Path("docs/reference/official.md")
TITLES = {"official": "official", "whole": "ours, whole story read", "default": "ours, as drawn"}
PAGE = """# Reading as the official code does

For every frame the code that StoryGPT-V was published with looks at all earlier pictures again and reads the
whole story twice, from nothing: the first pass only finds the [IMG] token that is forced anyway. Here a
picture is looked at once, and a frame reads its predecessor and its own caption behind a cache. Both with the
same weights, captions and finished pictures; what is left out is equal in both: drawing, decoding, files.

{table}

Seconds of looking and reading for all frames together, components loaded, median of {rounds} rounds in which
the procedures take turns. The last two columns are the official figure over that of the row. *Whole story
read*: nothing is left out, as in the official procedure, and the states are the same. *As drawn*: behind at
most {context} frames, this bundle's context, which a longer story is
[reduced](../decisions/0014-a-reduced-context-with-room-to-grow.md) to and read anew each time.

In favour of the official procedure: its logits are not computed, nor the portraits that it encodes for every
frame without use. Frame 1 is read in both or in neither, as the bundle has it.

Bundle `{name}` ({sha256}), on {cores} cores of {cpu}, load average before {load}. Versions: {versions}.
Needs `pip install 'storyv-lite[train]'` for the pictures. Written again by:

```bash
{command}
```
"""

Floats = NDArray[np.float32]


@dataclass
class Counts:
    """What passed through the networks."""

    tokens: int = 0  # through the language model
    reads: int = 0  # its calls
    pictures: int = 0  # through its vision encoder


@dataclass(frozen=True)
class Cost:
    """What it takes to know what to draw in every frame of one story."""

    procedure: str  # a key of `TITLES`
    frames: int
    counts: Counts
    seconds: tuple[float, ...]  # reading and looking, once per round


class Counter:
    """A backend, counts of what passes through it, and the states that were read last, (1, S, hidden)."""

    def __init__(self, backend: Backend) -> None:
        self.backend = Relay(backend, self._run, self._read)
        self.counts = Counts()
        self.states: Floats | None = None

    def _run(self, component: Component, session: Session, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        self.counts.pictures += component is Component.VISION_ENCODER
        return session.run(inputs)

    def _read(self, session: LanguageSession, embeds: Floats, storage: CacheStorage, past: int) -> Floats:
        self.counts.tokens += embeds.shape[1]
        self.counts.reads += 1
        self.states = session.read(embeds, storage, past)
        return self.states


def read_officially(model: Model, captions: Sequence[str], pictures: Sequence[Pixels]) -> None:
    """Every frame from nothing; `model` draws frame 1 without the language model if it does so at all."""
    first = 1 if model.bundle.model.first_frame == "char_ldm" else 0
    for index, caption in enumerate(captions[first:], first):
        earlier = [
            model.piece(place, history(captions[place]), model.look(pictures[place]))
            for place in range(index)
        ]
        asked = tuple(segment for segment in query(caption) if not isinstance(segment, ImageQuery))
        for wanted in (model.piece(index, asked), model.piece(index, query(caption))):
            _read_all(model, earlier, wanted)


def _read_all(model: Model, earlier: Sequence[Piece], wanted: Piece) -> None:
    length = 1 + sum(map(len, earlier)) + len(wanted)
    model.language.read(earlier, wanted, model.language.new_cache(length))


def read_through_the_cache(
    pipeline: StoryPipeline, captions: Sequence[str], pictures: Sequence[Pixels]
) -> None:
    """The pipeline's own loop; every picture is there already, so that it reads and looks and draws none."""
    list(pipeline.draw(Story(tuple(map(Caption, captions))), finished=pictures))


def unlimited(bundle: Bundle) -> Bundle:
    """The same bundle reading behind whole stories, as the official procedure does."""
    tokens = bundle.model.dimensions.max_position_embeddings
    return replace(bundle, model=replace(bundle.model, context=Context(tokens, frames=tokens)))


def measure(
    bundle: Bundle,
    captions: Sequence[str],
    pictures: Sequence[Pixels],
    rounds: int = ROUNDS,
    threads: int | None = None,
) -> list[Cost]:
    """One cost per procedure for the whole story; the procedures take turns. Components are loaded before.

    Raises `ConfigError` for a story that the model has no positions for.
    """
    counter = Counter(open_backend("cpu", threads))
    whole, ours = (StoryPipeline(one, counter.backend) for one in (unlimited(bundle), bundle))
    _check_length(whole.model, captions)
    ways = {
        "official": partial(read_officially, whole.model),
        "whole": partial(read_through_the_cache, whole),
        "default": partial(read_through_the_cache, ours),
    }
    for way in ways.values():
        way(captions[:2], pictures[:2])  # loads what is needed
    found: dict[str, list[tuple[float, Counts]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            counter.counts = Counts()
            start = time.perf_counter()
            way(captions, pictures)
            found[name].append((time.perf_counter() - start, counter.counts))
    whole.close()
    ours.close()
    seconds = {name: tuple(took for took, _ in some) for name, some in found.items()}
    return [Cost(name, len(captions), found[name][-1][1], seconds[name]) for name in ways]


def _check_length(model: Model, captions: Sequence[str]) -> None:
    slot = np.zeros((model.dims.visual_tokens, model.dims.hidden_size), np.float32)
    pieces = [model.piece(i, history(text), slot) for i, text in enumerate(captions[:-1])]
    needed = 1 + sum(map(len, pieces)) + len(model.piece(len(pieces), query(captions[-1])))
    if needed > model.dims.max_position_embeddings:
        raise ConfigError(
            f"{len(captions)} frames take {needed} tokens; "
            f"the model has positions for {model.dims.max_position_embeddings}",
            hint="give fewer with `--frames`",
        )


def table(costs: Sequence[Cost]) -> list[list[str]]:
    """A header, and one row per length and procedure; ratios are the official figure over this one."""
    rows = [["frames", "procedure", "tokens read", "pictures looked at", "seconds", "tokens", "time"]]
    official = {cost.frames: cost for cost in costs if cost.procedure == "official"}
    for cost in costs:
        other, took = official[cost.frames], statistics.median(cost.seconds)
        rows.append(
            [
                str(cost.frames),
                TITLES[cost.procedure],
                f"{cost.counts.tokens:,}",
                f"{cost.counts.pictures:,}",
                f"{took:.3g}",
                f"{other.counts.tokens / cost.counts.tokens:.1f}x",
                f"{statistics.median(other.seconds) / took:.1f}x",
            ]
        )
    return rows


def markdown(record: Mapping[str, Any], costs: Sequence[Cost]) -> str:
    """The page, from the record and its rows."""
    machine, bundle = record["machine"], record["bundle"]
    return PAGE.format(
        table=markdown_table(table(costs)),
        rounds=record["rounds"],
        name=bundle["name"],
        sha256=bundle["sha256"][:12],
        context=bundle["context_frames"],
        cpu=machine["cpu"],
        cores=machine["cores"],
        load=machine["load_average"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        command=record["command"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="The official way to read against ours.")
    parser.add_argument("--bundle", help="bundle folder or name [as `storyv-lite render` chooses]")
    parser.add_argument(
        "--frames", type=int, nargs="+", default=LENGTHS, metavar="N", help="lengths of stories"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="times each is measured; the median is shown"
    )
    parser.add_argument("--threads", type=int, help="CPU threads per component [one per core]")
    parser.add_argument("--write", action="store_true", help=f"write `{RECORD}` and `{DOCUMENT}`")
    asked = parser.parse_args(arguments)
    machine = this_machine()  # its load before this adds to it
    try:
        check_written(*([RECORD, DOCUMENT] if asked.write else []))
        if min(*asked.frames, 2) < 2:
            raise ConfigError(
                "a story of one frame has no history to read", hint="give 2 or more to `--frames`"
            )
        bundle = Bundle.open(find_bundle(asked.bundle)[0])
        captions, pictures = told_by_the_world(max(asked.frames), bundle.model.dimensions.image_size)
        costs: list[Cost] = []
        for frames in asked.frames:
            tell(f"{frames} frames")
            costs += measure(bundle, captions[:frames], pictures[:frames], asked.rounds, asked.threads)
    except StoryVError as fault:
        return failed(fault)
    record = {
        **heading(typed(COMMAND, arguments), machine),
        "bundle": {
            "name": bundle.name,
            "sha256": bundle.sha256,
            "context_frames": bundle.model.context.frames,
        },
        "rounds": asked.rounds,
        "rows": [asdict(cost) for cost in costs],
    }
    page = markdown(record, costs)
    print(page)
    if asked.write:
        write_record(RECORD, record)
        DOCUMENT.write_text(page, encoding="utf-8", newline="\n")
        print(f"wrote {RECORD} and {DOCUMENT}")
    print(json.dumps(record))
    return 0


def told_by_the_world(frames: int, size: int) -> tuple[list[str], list[Pixels]]:
    """Captions and pictures (size, size, 3) of the first test story, told and drawn by the cartoon world."""
    from storyv_lite.train.toonworld import draw
    from storyv_lite.train.toonworld.splits import GOLDEN_SEED, story_seed
    from storyv_lite.train.toonworld.stories import sample_story

    story = sample_story(story_seed("test", GOLDEN_SEED, 0), frames, "test")
    pictures = [draw.render(frame.scene, size).image for frame in story.frames]
    return [frame.reference for frame in story.frames], pictures


if __name__ == "__main__":
    sys.exit(main())
