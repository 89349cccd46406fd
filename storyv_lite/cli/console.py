"""How every command speaks: results on stdout; warnings, errors and progress on stderr.

With `--json` the last line of stdout is one JSON object. A progress line is drawn on a terminal only.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import typer

from storyv_lite.errors import StoryVError


def say(text: str) -> None:
    """One line of result, on stdout."""
    typer.echo(text)


def note(text: str) -> None:
    """One line about what is going on, on stderr."""
    typer.echo(text, err=True)


def warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)


def print_error(error: StoryVError) -> None:
    hint = f"\n\nhint: {error.hint}" if error.hint else ""
    typer.echo(f"error: {error.message}{hint}", err=True)


def say_json(value: Mapping[str, object]) -> None:
    """The machine-readable result: one line, the last of stdout."""
    typer.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line on the terminal that the yielded function rewrites; silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(escape(text))


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
