"""A long story in a bounded context: does a frame of the end cost what one of the beginning does?

Run `python -m storyv_lite.benchmarks.bounded [--frames N] [--context-size SIZE] [--write]`. A story whose
captions take equally many tokens is drawn under a cap that makes the context be rebuilt again and again, in
one process with one thread. Seconds are the processor's, which neighbours on the machine change least. The
exit code is 1 when a check fails.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyv_lite.benchmarks.command import check_written, failed, typed
from storyv_lite.benchmarks.machine import this_machine, versions
from storyv_lite.benchmarks.plot import Line, Panel, svg
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import ConfigError, StoryVError
from storyv_lite.memory import resident_memory

if TYPE_CHECKING:
    from storyv_lite.runtime.model import Model
    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.story import Story

FRAMES, SIZE, SEED = 200, "6MiB", 0
WARM = 4  # after this part of the frames, one in so many, memory is compared
COMMAND = "python -m storyv_lite.benchmarks.bounded"
RESULT = Path("benchmarks/results/bounded_context.json")
IMAGE = Path("docs/images/bounded-context.svg")
INDOORS = ("meadow", "forest", "snow", "kitchen", "bedroom", "town")  # what one may be "in the"


@dataclass(frozen=True)
class Cost:
    """What one frame took."""

    tokens: int  # read by the language model
    tokens_in_cache: int
    seconds: float  # of the processor, for the whole frame
    rebuilt: bool
    resident: int  # bytes, when it was finished; 0 where the system does not say


def equal_story(model: "Model", frames: int, seed: int) -> "Story":
    """Who does what where, every caption of the length that most have; everybody comes in early."""
    from storyv_lite.prompt import history
    from storyv_lite.story import Caption, Story

    known = model.bundle.vocabulary
    places = [place for place in known["places"] if place in INDOORS]
    texts = {
        name: [
            f"{name.capitalize()} is {action} in the {place}."
            for action in known["actions"]
            for place in places
        ]
        for name in known["characters"]
    }
    lengths = Counter(len(model.piece(0, history(text))) for some in texts.values() for text in some)
    length = lengths.most_common(1)[0][0]
    equal = {n: [t for t in some if len(model.piece(0, history(t))) == length] for n, some in texts.items()}
    cast = [name for name, some in equal.items() if some]
    chance = random.Random(seed)
    return Story(tuple(Caption(chance.choice(equal[cast[i % len(cast)]])) for i in range(frames)))


def drawn(pipeline: "StoryPipeline", story: "Story", size: str | None) -> tuple[list[Cost], dict[str, Any]]:
    """Draw a story into a folder that goes again; what every frame took, and the receipt."""
    from storyv_lite.runtime.storyboard_folder import StoryboardFolder, new_journal

    costs: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="storyv-lite-bounded-") as name:
        settings = pipeline.settings(SEED, context_size=size)
        folder = StoryboardFolder(
            Path(name), new_journal(story, "A long story", pipeline, settings), pipeline
        )
        folder.begin()
        start = time.process_time()
        for record in folder.draw(lambda at: None, keep_going=False):
            seconds = time.process_time() - start
            memory = resident_memory()
            costs.append(
                Cost(
                    record["tokens_read"],
                    record["tokens_in_cache"],
                    round(seconds, 4),
                    record["rebuilt_context"],
                    (memory.anonymous or 0) + (memory.file or 0),
                )
            )
            print(f"frame {len(costs)} of {len(story.captions)}", file=sys.stderr, end="\r")
            start = time.process_time()
        return costs, folder.finish(0)


def cycles(costs: Sequence[Cost]) -> list[Sequence[Cost]]:
    """The frames from each rebuild up to the next; what comes before the first and behind the last is not."""
    begins = [frame for frame, cost in enumerate(costs) if cost.rebuilt]
    return [costs[begin:end] for begin, end in zip(begins, begins[1:], strict=False)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def checks(
    costs: Sequence[Cost], free: Sequence[Cost], receipt: dict[str, Any]
) -> dict[str, dict[str, float | bool]]:
    """Every promise with its figure, its limit and whether it held; `free` are frames that nothing bounds.

    Raises `ConfigError` when the context was not rebuilt often enough to compare anything.
    """
    cap, rounds = receipt["context"]["limit_tokens"], cycles(costs)
    if len(rounds) < 2:
        raise ConfigError(
            f"{len(costs)} frames under a cap of {cap} tokens make {len(rounds)} whole cycles; 2 are needed",
            hint="give more `--frames`, or a smaller `--context-size`",
        )
    tokens = [mean([cost.tokens for cost in one]) for one in rounds]
    seconds = [mean([cost.seconds for cost in one]) for one in rounds]
    free_tokens, free_seconds = mean([cost.tokens for cost in free]), mean([cost.seconds for cost in free])
    memory = [cost.resident for cost in costs[len(costs) // WARM :]]
    found = {
        "rebuilds": (receipt["context"]["rebuilds"], 10),
        "rebuilds_not_in_receipt": (sum(c.rebuilt for c in costs) - receipt["context"]["rebuilds"], 0),
        "tokens_of_a_frame_beyond_the_cap": (max(0, max(cost.tokens for cost in costs) - cap), 0),
        "tokens_per_cycle_apart": (max(abs(one / mean(tokens) - 1) for one in tokens), 0.05),
        "seconds_per_cycle_apart": (max(abs(one / mean(seconds) - 1) for one in seconds), 0.15),
        "tokens_to_unbounded": (mean(tokens) / free_tokens, 2),
        "seconds_to_unbounded": (mean(seconds) / free_seconds, 2),
        "memory_grown": (max(memory) / memory[0] - 1 if memory[0] else 0, 0.02),
    }
    return {
        name: {
            "value": round(value, 4),
            "limit": limit,
            "held": value >= limit if name == "rebuilds" else value <= limit,
        }
        for name, (value, limit) in found.items()
    }


def plot(costs: Sequence[Cost], free: Sequence[Cost], cap: int) -> str:
    mebibytes = [cost.resident / 2**20 for cost in costs]
    unbounded = mean([cost.tokens for cost in free])
    return svg(
        [
            Panel(
                "Tokens read for a frame",
                [
                    Line("bounded", [cost.tokens for cost in costs]),
                    Line("the cap", level=cap),
                    Line("mean while nothing is dropped", level=unbounded),
                ],
            ),
            Panel("Tokens held", [Line("bounded", [cost.tokens_in_cache for cost in costs])]),
            Panel("Processor seconds of a frame", [Line("bounded", [cost.seconds for cost in costs])]),
            Panel("Resident memory, MiB", [Line("bounded", mebibytes)]),
        ],
        "frame",
    )


def measure(pipeline: "StoryPipeline", frames: int, size: str, command: str) -> dict[str, Any]:
    """Draw the beginning without a cap, then the whole story with it. Raises what drawing raises."""
    from storyv_lite.story import Story

    story = equal_story(pipeline.model, frames, SEED)
    beginning = Story(story.captions[: pipeline.bundle.model.context.frames])
    free = drawn(pipeline, beginning, None)[0][1:]  # its first frame loads what draws
    costs, receipt = drawn(pipeline, story, size)
    found = checks(costs, free, receipt)
    rounds = cycles(costs)
    return {
        "schema": 1,
        "command": command,
        "versions": versions(),
        "machine": this_machine().as_dict(),
        "bundle": {"name": pipeline.bundle.name, "sha256": pipeline.bundle.sha256},
        "context": receipt["context"],
        "frames_per_cycle": mean([len(one) for one in rounds]),
        "tokens_per_frame": mean([mean([cost.tokens for cost in one]) for one in rounds]),
        "seconds_per_frame": mean([mean([cost.seconds for cost in one]) for one in rounds]),
        "unbounded": {
            "tokens_per_frame": mean([cost.tokens for cost in free]),
            "seconds_per_frame": mean([cost.seconds for cost in free]),
        },
        "checks": found,
        "held": all(one["held"] for one in found.values()),
        "captions": [caption.text for caption in story.captions[:8]],
        "frames": [asdict(cost) for cost in costs],
        "free": [asdict(cost) for cost in free],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="A long story in a bounded context.")
    parser.add_argument("--bundle", help="bundle folder or name [as `storyv-lite render` chooses]")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N", help=f"[{FRAMES}]")
    parser.add_argument("--context-size", default=SIZE, metavar="SIZE", help=f"the cap [{SIZE}]")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT} and {IMAGE}")
    asked = parser.parse_args(arguments)
    from storyv_lite.runtime.pipeline import StoryPipeline

    try:
        check_written(*([RESULT, IMAGE] if asked.write else []))
        pipeline = StoryPipeline.from_bundle(asked.bundle, "cpu", threads=1)
        result = measure(pipeline, asked.frames, asked.context_size, typed(COMMAND, arguments))
    except StoryVError as fault:
        return failed(fault)
    table = [["check", "value", "limit", "held"]]
    for name, one in result["checks"].items():
        value, limit = f"{one['value']:g}", f"{one['limit']:g}"
        table.append([name.replace("_", " "), value, limit, "yes" if one["held"] else "NO"])
    print(markdown_table(table))
    if asked.write:
        costs, free = ([Cost(**one) for one in result[name]] for name in ("frames", "free"))
        RESULT.write_text(json.dumps(result) + "\n", encoding="utf-8", newline="\n")
        IMAGE.write_text(plot(costs, free, result["context"]["limit_tokens"]), encoding="utf-8", newline="\n")
        print(f"wrote {RESULT} and {IMAGE}")
    print(json.dumps({name: value for name, value in result.items() if name not in ("frames", "free")}))
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
