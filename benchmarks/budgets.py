"""Memory plans kept: one story under several budgets, what was planned beside what was measured.

Run `python -m storyv_lite.benchmarks.budgets [--write FILE]`: six budgets, from the smallest that does to
more than everything takes; each story is drawn by `storyv-lite render` in a process of its own, which reads
its own counters. Exit code 1 where more was used than planned, or less than 85 % of it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.command import check_written, failed, heading, typed, write_record
from storyv_lite.benchmarks.measure import PICNIC, ask, repeat_captions
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import find_bundle
from storyv_lite.errors import StoryVError
from storyv_lite.memory import format_bytes, parse_bytes

COMMAND = "python -m storyv_lite.benchmarks.budgets"
LEAST_USED = 0.85  # part of the plan
MIB = 2**20


def budgets_of(planned: Mapping[str, Any], least: int, count: int) -> list[int]:
    """Sizes in whole MiB from the least that does to a little more than everything takes."""
    first, last = -(-least // MIB), -(-int(planned["ram_bytes"]) // MIB) + 8
    return [round(first + index * (last - first) / (count - 1)) * MIB for index in range(count)]


def measure(command: Sequence[str], story: Path, bundle: Path, ram: int | None) -> dict[str, Any]:
    """One row: the plan and what was measured, or `error`."""
    with tempfile.TemporaryDirectory() as folder:
        words = [*command, "render", str(story), "-o", str(Path(folder) / "out"), "--bundle", str(bundle)]
        words += ["--ram", f"{ram}B"] if ram else []
        found = ask([*words, "--device", "cpu", "--json"], "")
    if "error" in found:
        return {"budget_bytes": ram, "error": found["error"]}
    plan = found["plan"]
    return {
        "budget_bytes": ram,
        "planned_bytes": plan["ram_bytes"],
        "measured_bytes": found["memory_bytes"]["peak"],
        "kept": plan["choice"]["kept"],
        "guidance_passes": 1 if plan["choice"]["batched"] else 2,
        "tile": plan["choice"]["tile"],
        "context_tokens": plan["demand"]["tokens"],
        "load_seconds_per_frame": plan["load_seconds_per_frame"],
        "seconds": found["seconds"],
        "phases": plan["phases"],
    }


def faults(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row, empty where the plan held."""
    if "error" in row:
        return [str(row["error"])]
    found = [
        f"`{one['name']}` took {format_bytes(one['measured_bytes'])} of {format_bytes(one['ram_bytes'])}"
        for one in row["phases"]
        if (one["measured_bytes"] or 0) > one["ram_bytes"]
    ]
    part = row["measured_bytes"] / row["planned_bytes"]
    return [*found, *([f"{part:.0%} of what was planned"] if not LEAST_USED <= part <= 1 else [])]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["budget", "planned", "measured", "part", "stays loaded", "guidance", "price per frame", "seconds"]
    lines = [head]
    for row in rows:
        budget = format_bytes(row["budget_bytes"]) if row["budget_bytes"] else "none"
        if "error" in row:
            lines.append([budget, row["error"], *[""] * 6])
            continue
        passes = "one pass" if row["guidance_passes"] == 1 else "two passes"
        lines.append(
            [
                budget,
                format_bytes(row["planned_bytes"]),
                format_bytes(row["measured_bytes"]),
                f"{row['measured_bytes'] / row['planned_bytes']:.0%}",
                ", ".join(row["kept"]) or "nothing",
                passes,
                f"{row['load_seconds_per_frame']:.2f} s",
                f"{row['seconds']:.1f}",
            ]
        )
    return markdown_table(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Plans against measured memory.")
    parser.add_argument("--bundle", default=None, help="folder or name [as `render` chooses]")
    parser.add_argument("--frames", type=int, default=5, help="of the story [5]")
    parser.add_argument("--budgets", type=int, default=6, help="how many [6]")
    parser.add_argument("--write", type=Path, default=None, metavar="FILE", help="write the record here, too")
    asked = parser.parse_args(arguments)
    command = [sys.executable, "-m", "storyv_lite"]
    with tempfile.TemporaryDirectory() as folder:
        story = Path(folder) / "picnic.txt"
        story.write_text("\n".join(repeat_captions(PICNIC, asked.frames)), encoding="utf-8")
        try:
            check_written(asked.write)
            bundle, _ = find_bundle(asked.bundle)
        except StoryVError as fault:
            return failed(fault)
        plan = [*command, "plan", str(story), "--bundle", str(bundle), "--device", "cpu", "--json"]
        free = ask(plan, "")
        if "error" in free:
            print(f"error: {free['error']}", file=sys.stderr)
            return 1
        rows = []
        for ram in budgets_of(free, _least(plan), asked.budgets):
            rows.append(measure(command, story, bundle, ram))
            print(f"{format_bytes(ram)}: {'; '.join(faults(rows[-1])) or 'as planned'}", file=sys.stderr)
    record = {
        **heading(typed(COMMAND, arguments)),
        "bundle": bundle.name,
        "frames": asked.frames,
        "rows": rows,
    }
    print(table(rows))
    if asked.write:
        write_record(asked.write, record)
    print(json.dumps(record))
    return 1 if any(map(faults, rows)) else 0


def _least(plan: Sequence[str]) -> int:
    """Bytes of the smallest budget that does, as a refusal names it in its hint."""
    hint = str(ask([*plan, "--ram", "1MiB"], "")["error"])
    return parse_bytes(hint.split("--ram ")[1].split("`")[0])


if __name__ == "__main__":
    sys.exit(main())
