"""What the commands of this folder share: telling progress and failures, heading and writing records.

Knows nothing of what is measured.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks.machine import LIBRARIES, Machine, this_machine, versions
from storyv_lite.errors import StoryVError
from storyv_lite.outputs import check_file

SCHEMA = 1  # of every record


def failed(fault: StoryVError) -> int:
    """Say what went wrong and what helps; the exit code."""
    print(f"error: {fault.message}\n\nhint: {fault.hint}", file=sys.stderr)
    return fault.exit_code


def tell(text: str) -> None:
    """How far it is, where no result goes."""
    print(text, file=sys.stderr, flush=True)


def typed(command: str, arguments: Sequence[str] | None) -> str:
    """The command as it was typed; `arguments` as `main` got them."""
    return shlex.join([*command.split(), *(sys.argv[1:] if arguments is None else arguments)])


def heading(
    command: str, machine: Machine | None = None, libraries: tuple[str, ...] = LIBRARIES
) -> dict[str, Any]:
    """What every record begins with: when, by which command, where, with which versions."""
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": (machine or this_machine()).as_dict(),
        "versions": versions(libraries),
    }


def check_written(*files: Path | None) -> None:
    """Raise `OutputError`, before anything is measured, where a file cannot be written at the end."""
    for file in files:
        if file is not None:
            check_file(file, force=True)


def write_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record as indented JSON."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    file.write_text(text, encoding="utf-8", newline="\n")


def write_page(document: Path, page: str, result: Path, record: Mapping[str, Any]) -> None:
    """Write a Markdown page and the record that it shows, and say so."""
    document.write_text(page, encoding="utf-8", newline="\n")
    write_record(result, record)
    print(f"wrote {document} and {result}")
