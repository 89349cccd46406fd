"""`storyv-lite characters`: who and what a bundle knows, as text and as a picture sheet."""

from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.cli.console import note, say, say_json
from storyv_lite.cli.options import BundleOption, ForceOption, JsonOption
from storyv_lite.outputs import check_file


def characters(
    bundle: BundleOption = "",
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw all portraits on this PNG file.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the characters and the words a bundle knows."""
    if sheet is not None:
        check_file(sheet, force)
    path, why = find_bundle(bundle or None)
    opened = Bundle.open(path)
    note(f"bundle: {path} ({why})")
    for one in opened.characters:
        say(f"{one.name.capitalize()} the {one.kind} ({one.pronoun}): {one.description}")
    for kind in ("places", "actions", "props"):
        if words := opened.vocabulary.get(kind):
            say(f"{kind}: {', '.join(words)}")
    if sheet is not None:
        _draw(opened, sheet)
        say(f"wrote {sheet}")
    if opened.characters:
        name = opened.characters[0].name.capitalize()
        say(f'next: write story.txt ("{name} is waving."), then storyv-lite render story.txt')
    if as_json:
        keys = ("name", "kind", "pronoun", "description", "aliases")
        cast = [{key: getattr(one, key) for key in keys} for one in opened.characters]
        say_json({"bundle": str(path), "characters": cast, "sheet": str(sheet) if sheet else None})


def _draw(bundle: Bundle, target: Path) -> None:
    from storyv_lite.runtime.images import png, read_portrait
    from storyv_lite.runtime.storyboard import Panel, sheet

    panels = [
        Panel(
            f"{one.name.capitalize()} the {one.kind} ({one.pronoun})",
            png(read_portrait(bundle.file(one.portrait.file)), {}),
        )
        for one in bundle.characters
    ]
    sheet("", panels).save(target, "PNG")
