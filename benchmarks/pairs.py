"""Two records of `storyv-lite eval` over the same stories, compared story by story.

Run `python -m storyv_lite.benchmarks.pairs FIRST.json SECOND.json`: a quantized bundle against the checkpoint
in full precision, one context against another. Knows records, draws nothing. Figures that are no sum over
frames (Fréchet distance, consistency) cannot be paired and are left out.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from storyv_lite.benchmarks.command import failed
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.benchmarks.scores import COSINES, PERCENT, Estimate, Row, paired
from storyv_lite.errors import ConfigError, StoryVError

COMMAND = "python -m storyv_lite.benchmarks.pairs"


def read_rows(file: Path) -> list[Row]:
    """The judged frames of a record. Raises `ConfigError` for a file that is none."""
    try:
        return [Row.from_dict(row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise ConfigError(
            f"`{file}` is no record of judged frames", hint="storyv-lite eval --record FILE"
        ) from fault


def differences(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Estimate]:
    """How much higher each figure is in the first run. Raises `ConfigError` for runs over other stories."""
    return {name: paired(first, second, name) for name in (*PERCENT, *COSINES)}


def table(found: dict[str, Estimate]) -> list[list[str]]:
    """A header and one row of text per figure that both runs have."""
    cells = [["figure", "first less second", "95 % interval"]]
    for name, one in found.items():
        if one.value is not None:
            cells.append([name, f"{one.value:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}"])
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compare two records of `storyv-lite eval`.")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    asked = parser.parse_args(arguments)
    try:
        found = differences(read_rows(asked.first), read_rows(asked.second))
    except StoryVError as fault:
        return failed(fault)
    print(markdown_table(table(found)))
    print(json.dumps({"schema": 1, "differences": {name: asdict(one) for name, one in found.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
