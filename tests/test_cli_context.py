"""The cap on the story context and the width of its cache, from the command line to the receipt and back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CAPTIONS = ["Milo is waving.", "He is standing.", "Luna is sitting.", "They have a ball.", "Milo waves."] * 2
QUICK = ("--steps", "1", "--seed", "3")
CAPPED = ("--context-size", "90", "--kv-cache", "int8")
FILES = {
    "day.txt": "\n".join(CAPTIONS),
    "half.txt": "\n".join(CAPTIONS[:5]),
    "rest.txt": "\n".join(CAPTIONS[5:]),
}
DRAWN_WITH = (*QUICK, *CAPPED)
pytestmark = pytest.mark.usefixtures("work")

Said = Callable[..., str]


def receipt(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "story.json").read_text())
    return found


def pictures(folder: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(Path(folder).glob("frame-*.png"))]


def readings(folder: str) -> list[tuple[Any, ...]]:
    """What every frame was read behind, and how; the tiny model's pictures hardly depend on it."""
    names = ("context_frames", "dropped_frames", "tokens_read", "tokens_in_cache", "rebuilt_context")
    return [tuple(frame[name] for name in names) for frame in receipt(folder)["frames"]]


def test_the_receipt_says_what_the_context_held_and_when_it_was_read_anew() -> None:
    found = receipt("whole")
    frames, context = found["frames"], found["context"]
    assert found["settings"]["context_tokens"] == 90 and found["settings"]["kv_cache"] == "int8"
    assert context["limit_tokens"] == 90 and context["limit_frames"] == 8
    assert context["kv_cache"] == "int8" and context["bytes_per_token"] == 8 * 36
    assert context["rebuilds"] == sum(frame["rebuilt_context"] for frame in frames) > 1
    assert context["tokens_read"] == sum(frame["tokens_read"] for frame in frames)
    assert context["tokens_in_cache"] == max(frame["tokens_in_cache"] for frame in frames) <= 90
    for before, frame in zip(frames, frames[1:], strict=False):
        left = {*before["context_frames"], before["frame"]} - {*frame["context_frames"]}
        assert left == {*frame["dropped_frames"]}
    assert "--context-size 90 --kv-cache int8" in found["command"]


def test_the_page_of_the_story_context_names_what_the_receipt_says_of_it() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/story_context.md").read_text(encoding="utf-8")
    found = receipt("whole")
    fields = {
        *found["context"],
        *(name for name in found["frames"][0] if "context" in name or "token" in name),
    }
    assert len(fields) > 9 and all(f"`{name}`" in page for name in {*fields, "dropped_frames"})


def test_a_size_in_bytes_is_the_same_cap_at_the_width_of_the_cache(done: Said) -> None:
    size = f"{90 * 8 * 36}B"
    done("render", "day.txt", "-o", "other", *QUICK, "--context-size", size, "--kv-cache", "int8")
    assert pictures("other") == pictures("whole")
    assert readings("other") == readings("whole")


def test_without_a_cap_the_bundles_limit_holds_and_with_one_frames_are_drawn_after_less(done: Said) -> None:
    done("render", "day.txt", "-o", "free", *QUICK)
    assert receipt("free")["settings"]["context_tokens"] is None
    assert receipt("free")["context"]["kv_cache"] == "fp32"
    assert receipt("free")["context"]["bytes_per_token"] == 8 * 128
    done("render", "day.txt", "-o", "wide", *QUICK, "--context-size", "90")
    assert readings("wide") == readings("whole") and readings("free")[:3] == readings("wide")[:3]
    assert len(readings("free")[-1][0]) > len(readings("wide")[-1][0])


def test_continuing_redrawing_and_drawing_the_receipt_again_keep_the_cap(done: Said) -> None:
    done("render", "half.txt", "-o", "half", *QUICK, *CAPPED)
    done("continue", "half", "rest.txt")
    assert pictures("half") == pictures("whole") and readings("half") == readings("whole")
    done("redraw", "whole", "--frame", "3", "--seed", "3", "--follow")
    assert pictures("half") == pictures("whole") and readings("half") == readings("whole")


@pytest.mark.parametrize("given", [(), CAPPED])
def test_a_story_that_was_stopped_goes_on_under_its_cap(
    given: tuple[str, ...], small_disk: Any, monkeypatch: pytest.MonkeyPatch, done: Said, refused: Said
) -> None:
    sizes = sorted(map(len, pictures("whole")))
    with small_disk(sizes[-1] - 1):
        refused(2, "render", "day.txt", "-o", "cut", *QUICK, *CAPPED)
    done("render", "day.txt", "-o", "cut", "--resume", *QUICK, *given)
    assert pictures("cut") == pictures("whole") and readings("cut") == readings("whole")


def test_another_cap_than_the_one_it_was_begun_with_is_refused(small_disk: Any, refused: Said) -> None:
    with small_disk(100):
        refused(2, "render", "day.txt", "-o", "cut", *QUICK, *CAPPED)
    shutil.copytree("whole", "again")
    said = refused(2, "render", "day.txt", "-o", "again", "--resume", *QUICK, "--context-size", "200")
    assert "context tokens: `90`, needed `200`" in said


def test_a_story_drawn_before_there_were_caps_is_continued(done: Said) -> None:
    file = Path("whole/story.json")
    found = receipt("whole")
    for name in ("context_tokens", "kv_cache", "spell_out"):
        del found["settings"][name]
    for frame in found["frames"]:
        for name in ("dropped_frames", "rebuilt_context", "tokens_in_cache"):
            del frame[name]
    file.write_text(json.dumps(found))
    done("continue", "whole", "rest.txt")
    assert receipt("whole")["context"]["limit_tokens"] == 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context-size", "20"), "a context of 20 tokens is too small: frame "),
        (("--context-size", "1KiB"), "a context of 1 tokens is too small"),
        (("--context-size", "large"), "`large` is no context size"),
        (("--kv-cache", "int2"), "`int2` is no width of keys and values"),
    ],
)
def test_what_cannot_be_held_is_refused_before_anything_is_written(
    options: tuple[str, str], message: str, refused: Said
) -> None:
    assert message in refused(2, "render", "day.txt", "-o", "none", *QUICK, *options)
    assert not Path("none").exists()


def test_a_story_whose_frames_are_spelled_out_says_so_and_goes_on_so(done: Said, refused: Said) -> None:
    done("render", "half.txt", "-o", "told", *QUICK, "--spell-out")
    done("continue", "told", "rest.txt")
    assert receipt("told")["settings"]["spell_out"] is True
    assert receipt("whole")["settings"]["spell_out"] is False
    assert receipt("told")["command"].endswith(" --spell-out")
    done("render", "day.txt", "-o", "told", "--resume", *QUICK, "--spell-out")
    said = refused(2, "render", "day.txt", "-o", "told", "--resume", *QUICK)
    assert "spelling out: `True`, needed `False`" in said


def test_what_the_default_model_spelled_out_stands_in_receipt_and_page_and_is_told_on(done: Said) -> None:
    told = ("Milo is waving in the meadow.", "He is jumping.", "Now he is holding a balloon.")
    Path("three.txt").write_text("\n".join(told))
    Path("two.txt").write_text("\n".join(told[:2]))
    Path("third.txt").write_text(told[2])
    toon = ("--bundle", "toon", "--spell-out", *QUICK)
    done("render", "three.txt", "-o", "three", *toon)
    done("render", "two.txt", "-o", "two", *toon)
    page = Path("two/index.html").read_text()
    assert page.count("taken for: ") == 1 and "taken for: milo jumping" in page
    done("continue", "two", "third.txt")
    spelled = [frame.get("spelled_out", "") for frame in receipt("three")["frames"]]
    assert not spelled[0] and all(text.startswith("milo ") for text in spelled[1:])
    assert [frame.get("spelled_out", "") for frame in receipt("two")["frames"]] == spelled
    assert pictures("two") == pictures("three")
    done("redraw", "two", "--frame", "2", "--caption", "She is Luna.", "--follow")
    Path("other.txt").write_text("\n".join((told[0], "She is Luna.", told[2])))
    done("render", "other.txt", "-o", "other", *toon)
    assert receipt("two")["frames"][2]["spelled_out"] == receipt("other")["frames"][2]["spelled_out"]
    assert pictures("two") == pictures("other") != pictures("three")


def test_a_longer_caption_than_the_cap_holds_does_not_touch_the_story(done: Said, refused: Said) -> None:
    before = Path("whole/story.json").read_bytes()
    Path("long.txt").write_text(
        "Milo is waving in the meadow and Luna is running to him and they have a ball."
    )
    said = refused(2, "render", "half.txt", *QUICK, "--context-size", "1")
    least = said.split("--context-size ")[1].split("`")[0]
    done("render", "half.txt", "-o", "tight", *QUICK, "--context-size", least)
    kept = Path("tight/story.json").read_bytes()
    assert "is too small" in refused(2, "continue", "tight", "long.txt")
    assert Path("tight/story.json").read_bytes() == kept and not Path("tight/journal.jsonl").exists()
    assert Path("whole/story.json").read_bytes() == before
