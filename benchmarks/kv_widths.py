"""Narrow keys and values beside wide ones, over real toon stories: how far apart are the [IMG] states?

Run `python -m storyv_lite.benchmarks.kv_widths [--stories N] [--frames F] [--write]`. Unseen stories of the
cartoon world are read with their real pictures, once per width; nothing is drawn. Longer stories than the
context are read in a reduced one, as when they are drawn. A frame below the bound is exit code 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import check_written, failed, typed
from storyv_lite.benchmarks.machine import this_machine, versions
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.errors import StoryVError
from storyv_lite.optional import require

if TYPE_CHECKING:
    from storyv_lite.runtime.model import Model
    from storyv_lite.train.toonworld.stories import ToonStory

SEED = 20240624  # as `storyv-lite eval`
NARROW = ("fp16", "int8")
BOUND = 0.999
COMMAND = "python -m storyv_lite.benchmarks.kv_widths"
RESULT = Path("benchmarks/results/kv_widths.json")


@dataclass(frozen=True)
class Likeness:
    """[IMG] states of one width against those of the width they are computed in."""

    width: str
    bytes_per_token: int
    read_ms: float  # of the processor, to read a frame
    lowest: float  # cosine of any frame, its [IMG] states as one vector
    mean: float
    lowest_state: float  # cosine of any single [IMG] state
    states: int
    states_below: int  # the bound


def states_of(model: "Model", story: "ToonStory", width: str | None) -> tuple[NDArray[np.float32], float]:
    """(frames, image_tokens, hidden) of a story read behind its real pictures, and seconds per reading."""
    from storyv_lite.runtime.story_context import StoryContext
    from storyv_lite.story import Caption
    from storyv_lite.train.toonworld import draw

    captions = [Caption(frame.reference) for frame in story.frames]
    size = model.dims.image_size
    context = StoryContext(model, captions, True, model.bundle.model.context, width)
    found, seconds = [], 0.0
    for index, frame in enumerate(story.frames):
        start = time.process_time()
        found.append(context.read(index, frame.reference)[0])
        seconds += time.process_time() - start
        context.remember(index, frame.reference, draw.render(frame.scene, size).image)
    return np.stack(found), seconds / len(found)


def compare(model: "Model", stories: Sequence["ToonStory"]) -> list[Likeness]:
    """One row per width, the one they are computed in first."""
    wide = [states_of(model, story, None)[0] for story in stories]
    rows = []
    for width in (None, *NARROW):
        frames, tokens, times = [], [], []
        for story, true in zip(stories, wide, strict=True):
            found, seconds = states_of(model, story, width)
            times.append(1000 * seconds)
            frames.append(_cosines(found.reshape(len(true), -1), true.reshape(len(true), -1)))
            tokens.append(_cosines(found, true))
        alike, single = np.concatenate(frames), np.concatenate(tokens)
        lowest, mean = float(alike.min()), float(alike.mean())
        below = int((single < BOUND).sum())
        name, size = width or model.language.width, model.token_bytes(width)
        took, worst = round(float(np.mean(times)), 2), float(single.min())
        rows.append(Likeness(name, size, took, lowest, mean, worst, single.size, below))
    return rows


def _cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    one, two = first.astype(np.float64), second.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    cosines: NDArray[np.float64] = (one * two).sum(-1) / lengths
    return cosines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Narrow keys and values beside wide ones.")
    parser.add_argument("--bundle", help="bundle folder or name [as `storyv-lite render` chooses]")
    parser.add_argument("--stories", type=int, default=20, metavar="N", help="how many [20]")
    parser.add_argument("--frames", type=int, default=50, metavar="F", help="frames of each [50]")
    parser.add_argument("--seed", type=int, default=SEED, help="which stories; all of them are unseen")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULT, help=f"write the result [{RESULT}]")
    asked = parser.parse_args(arguments)
    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.model import Model

    try:
        check_written(asked.write)
        require("skia", "train")
        from storyv_lite.train.toonworld.splits import story_seed
        from storyv_lite.train.toonworld.stories import sample_story

        bundle = Bundle.open(find_bundle(asked.bundle)[0])
        model = Model(bundle, open_backend("cpu", threads=1))
        seed = partial(story_seed, "test", asked.seed)
        rows = compare(model, [sample_story(seed(i), asked.frames, "test") for i in range(asked.stories)])
    except StoryVError as fault:
        return failed(fault)
    table = [
        [
            "width",
            "bytes per token",
            "read a frame, ms",
            "lowest of a frame",
            "mean",
            "lowest of one [IMG] state",
        ]
    ]
    table[0].append(f"states below {BOUND}")
    for one in rows:
        cosines = (f"{value:.6f}" for value in (one.lowest, one.mean, one.lowest_state))
        below = f"{one.states_below} of {one.states:,}"
        table.append([one.width, f"{one.bytes_per_token:,}", f"{one.read_ms:.1f}", *cosines, below])
    print(markdown_table(table))
    result = {
        "schema": 1,
        "command": typed(COMMAND, arguments),
        "versions": versions(),
        "machine": this_machine().as_dict(),
        "bundle": {"name": bundle.name, "sha256": bundle.sha256},
        "rows": [asdict(one) for one in rows],
        "bound": BOUND,
        "held": all(one.lowest >= BOUND for one in rows),
    }
    if asked.write:
        asked.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
        print(f"wrote {asked.write}")
    print(json.dumps(result))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
