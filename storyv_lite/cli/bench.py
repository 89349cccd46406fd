"""`storyv-lite bench`: what a bundle costs in time, memory and bytes."""

from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.cli.options import JsonOption


def bench(
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="Bundle to measure; may be repeated [default: as `render` chooses]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write a Markdown report here.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure seconds, memory and bytes of bundles."""
    raise NotImplementedError
