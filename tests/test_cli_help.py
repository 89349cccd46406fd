"""What `--help` says, word for word: it is the reference page, and a change of either is seen in the other.

Run this file to write the page again.
"""

from pathlib import Path
from typing import Any

import typer.main

from storyv_lite import errors
from storyv_lite.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
INTRODUCTION = """# Commands

Results go to stdout; warnings, errors and progress to stderr. With `--json` the last line of stdout is one
JSON object. Nothing is overwritten without `--force`.

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | a measurement failed, or a fault of this program, which shows a traceback |
{codes}
| 130 | stopped by Ctrl-C; what was finished is on the disk |

A command line that does not parse ends with 2 as well. Every other refusal is one message and one hint:

```text
error: there is no file `none.txt`

hint: storyv-lite render examples/picnic.txt
```

"""


def exit_codes() -> str:
    """One row per code above 1, from the tree in `storyv_lite/errors.py`."""
    meanings: dict[int, list[str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        name, code, *meaning = [*line.strip("├└─ ").split(), "", ""]
        if code.isdigit() and int(code) > 1:
            assert getattr(errors, name).exit_code == int(code)
            meanings.setdefault(int(code), []).append(" ".join(meaning).strip())
    return "\n".join(f"| {code} | {'; '.join(texts)} |" for code, texts in meanings.items())


def helps(command: Any, path: str, parent: Any = None) -> list[str]:
    """The help of a command and of every command below it, as a terminal of 100 columns shows it."""
    context = command.context_class(command, parent, path.split()[-1], terminal_width=100)
    found = [f"## {path}\n\n```text\n{command.get_help(context)}\n```\n"]
    for name, below in sorted(getattr(command, "commands", {}).items()):
        found += helps(below, f"{path} {name}", context)
    return found


def page() -> str:
    return INTRODUCTION.format(codes=exit_codes()) + "\n".join(
        helps(typer.main.get_command(app), "storyv-lite")
    )


def test_the_page_of_commands_says_what_help_says() -> None:
    assert PAGE.read_text(encoding="utf-8").split() == page().split(), (
        f"write it again: python {Path(__file__).name}"
    )


def options(command: Any, path: str) -> list[tuple[str, str]]:
    """Every option of a command and of those below it: its name, and what it says of itself."""
    own = [p for p in command.params if p.param_type_name == "option"]
    found = [(f"{path} {option.name}", option.help or "") for option in own]
    for name, below in getattr(command, "commands", {}).items():
        found += options(below, f"{path} {name}")
    return found


def test_every_option_explains_itself() -> None:
    found = options(typer.main.get_command(app), "storyv-lite")
    assert len(found) > 30 and [name for name, says in found if not says] == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
