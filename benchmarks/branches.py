"""Branches of a drawn story: what ten of them take on the disk, beside the story and copies of it.

Run `python -m storyv_lite.benchmarks.branches [--write FILE]`: a story of five frames is drawn, then every
frame is redrawn in a branch of its own, once alone and once with all that follow. Exit code 1 where the
branches take as much as three copies of the story or more. Knows folders; what a branch holds is the
command's business.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.command import check_written, failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import PICNIC, ask
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.bundle import find_bundle
from storyv_lite.errors import BackendError, StoryVError
from storyv_lite.memory import format_bytes

COMMAND = "python -m storyv_lite.benchmarks.branches"
COPIES = 3  # of the whole story, which ten branches have to stay below


def own_bytes(folder: Path, beside: Iterable[Path] = ()) -> int:
    """Room that the files of a folder take on the disk, less those that they share with a folder `beside`.

    Where the system does not count blocks it is the length of the files.
    """
    shared = {file.stat().st_ino for other in beside for file in other.iterdir()}
    found = {file.stat().st_ino: file.stat() for file in folder.iterdir()}
    return sum(
        512 * stat.st_blocks if hasattr(stat, "st_blocks") else stat.st_size
        for node, stat in found.items()
        if node not in shared
    )


def measure(place: Path, bundle: Path, options: Sequence[str]) -> dict[str, Any]:
    """Bytes of the story and of each branch, by commands as they are typed. Raises `BackendError`."""
    story, whole = place / "story.txt", place / "whole"
    story.write_text("\n".join(PICNIC), encoding="utf-8")
    chosen = ("--bundle", str(bundle))  # a story does not say where its bundle lies
    _command("render", str(story), "-o", str(whole), *chosen, *options)
    rows = []
    for frame in range(1, len(PICNIC) + 1):
        for follow in (False, True):
            name = f"{frame}{'-follow' if follow else ''}"
            asked = ["--frame", str(frame), "--branch", name, *(["--follow"] if follow else [])]
            _command("redraw", str(whole), *asked, *chosen)
            folder = place / f"whole-{name}"
            rows.append({"frame": frame, "follow": follow, "bytes": own_bytes(folder, [whole])})
            tell(f"branch {name}: {format_bytes(rows[-1]['bytes'])}")
    return {"whole_bytes": own_bytes(whole), "branches": rows}


def _command(*words: str) -> None:
    found = ask([sys.executable, "-m", "storyv_lite", *words, "--device", "cpu", "--json"], "")
    if "error" in found:
        raise BackendError(f"`storyv-lite {words[0]}` failed: {found['error']}", "storyv-lite doctor")


def table(found: dict[str, Any]) -> list[list[str]]:
    """A header, a row per redrawn frame, the sum, and how many whole stories that is."""
    rows = [["redrawn", "alone", "with all that follow"]]
    size = {(row["frame"], row["follow"]): row["bytes"] for row in found["branches"]}
    for frame in sorted({frame for frame, _ in size}):
        rows.append([f"frame {frame}", *(format_bytes(size[frame, follow]) for follow in (False, True))])
    sums = [sum(size for (_, own), size in size.items() if own is follow) for follow in (False, True)]
    rows.append(["sum", *map(format_bytes, sums)])
    rows.append(["of a whole story", *(f"{part / found['whole_bytes']:.2f}" for part in sums)])
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the record as JSON; write it where asked."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="What branches of a story take on the disk.")
    parser.add_argument("--bundle", default=None, help="folder or name [as `render` chooses]")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps [the bundle's]")
    parser.add_argument("--write", type=Path, default=None, metavar="FILE", help="write the record here, too")
    asked = parser.parse_args(arguments)
    try:
        check_written(asked.write)
        bundle, _ = find_bundle(asked.bundle)
        options = ["--steps", str(asked.steps)] if asked.steps else []
        with tempfile.TemporaryDirectory() as name:
            found = measure(Path(name), bundle, options)
    except StoryVError as fault:
        return failed(fault)
    total = sum(row["bytes"] for row in found["branches"])
    record = {**heading(typed(COMMAND, arguments)), "bundle": bundle.name, **found, "branches_bytes": total}
    print(markdown_table(table(found)))
    print(
        f"\n{len(found['branches'])} branches: {format_bytes(total)}; "
        f"the story itself: {format_bytes(found['whole_bytes'])}; "
        f"{COPIES} copies of it: {format_bytes(COPIES * found['whole_bytes'])}"
    )
    if asked.write:
        write_record(asked.write, record)
    print(json.dumps(record))
    return 0 if total < COPIES * found["whole_bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
