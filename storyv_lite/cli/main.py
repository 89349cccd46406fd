"""The table of commands, and the one place where a failure becomes a message and an exit code.

Exit codes are those of `storyv_lite.errors`; 130 after Ctrl-C. A traceback means a fault of this program.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from storyv_lite import __version__
from storyv_lite.cli import (
    bench,
    characters,
    data,
    doctor,
    eval,
    export,
    inspect,
    plan,
    ranges,
    render,
    train,
)
from storyv_lite.cli.console import print_error
from storyv_lite.cli.continue_story import continue_story
from storyv_lite.cli.redraw import redraw
from storyv_lite.errors import StoryVError


class Commands(TyperGroup):
    """Prints what a user can cause as a message and a hint, and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StoryVError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("\nstopped; what was finished is on the disk", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    name="storyv-lite",
    help="Draw stories: a few sentences become pictures in which the same characters stay the same.",
    epilog="Begin with: storyv-lite render STORY.txt, or in order: train, export --int4, render STORY.txt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"storyv-lite {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the whole program."""


app.command("render")(render.render)
app.command("redraw")(redraw)
app.command("continue")(continue_story)
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.command("export")(export.export)
app.command("ranges")(ranges.ranges)
app.command("characters")(characters.characters)
app.command("inspect")(inspect.inspect)
app.command("eval")(eval.evaluate)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.add_typer(data.app, name="data")
