"""What README.md says can be typed, and what it names is there."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from storyv_lite.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fenced(text: str) -> list[str]:
    """Lines inside fenced blocks."""
    return [
        line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()
    ]


def commands(text: str) -> list[str]:
    """Every `storyv-lite ...` command, in blocks and in running text; STORY stands for a file."""
    shown = [part.strip() for line in fenced(text) for part in line.split("&&")]
    shown += re.findall(r"`(storyv-lite [^`]+)`", text)
    return [command for command in shown if command.startswith("storyv-lite ")]


def parse(command: str) -> None:
    """Parse a command down to its last option without running it; raises what the command line would say."""
    arguments = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("storyv-lite", arguments[:1], resilient_parsing=True)
    name, rest = arguments[0], arguments[1:]
    while True:
        found = group.get_command(context, name)  # type: ignore[attr-defined]
        assert found is not None, f"there is no command {name}"
        if not hasattr(found, "commands"):
            found.make_context(name, rest, parent=context)
            return
        group, name, rest = found, rest[0], rest[1:]


def test_the_two_set_up_commands_stand_word_for_word_in_blocks_of_their_own() -> None:
    installs = [line for line in fenced(README) if line.startswith("pip install")]
    assert installs == [
        "pip install . && storyv-lite render examples/picnic.txt",
        "pip install -e '.[dev]' && pytest",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_is_shown_parses(page: Path) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        parse(command)


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(AssertionError):
        parse("storyv-lite paint story.txt")
    with pytest.raises(Exception, match="--colour"):
        parse("storyv-lite render story.txt --colour red")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_of_the_program_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `storyv-lite ([a-z]+)", README, re.M))
    assert table == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
