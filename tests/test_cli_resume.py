"""Stories stopped, damaged, redrawn, branched and continued: the same bytes as in one go, or a refusal."""

import dataclasses
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, chdir
from pathlib import Path

import numpy as np
import pytest

from storyv_lite.benchmarks.branches import own_bytes
from storyv_lite.bundle import hash_file
from storyv_lite.prompt import query
from storyv_lite.runtime.disk import locked
from storyv_lite.runtime.journal import JOURNAL, read_journal
from storyv_lite.runtime.language import make_piece
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.runtime.storyboard_folder import StoryboardFolder
from storyv_lite.runtime.takes import extended
from storyv_lite.story import Caption

Run = Callable[..., tuple[int, str, str]]
Said = Callable[..., str]

CAPTIONS = ["Milo is waving.", "He is standing.", "Luna is sitting.", "They have a ball.", "Milo waves."]
QUICK = ("--steps", "2", "--seed", "3")
FILES = {"day.txt": "title: A day\n" + "\n".join(CAPTIONS)}
DRAWN_WITH = QUICK
pytestmark = pytest.mark.usefixtures("work")


def stop(count: int, folder: str = "day-storyboard", source: str = "whole") -> Path:
    """A folder as a kill behind frame `count` leaves it."""
    place = Path(folder)
    place.mkdir()
    journal = read_journal(Path(source))
    assert journal is not None
    journal.without(range(count, len(journal.story.captions))).write(place)
    for number in range(1, count + 1):
        shutil.copy(Path(source, f"frame-{number:02}.png"), place)
    return place


def pictures(folder: str | Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(Path(folder).glob("*.png"))}


def differing(folder: str, other: str) -> list[int]:
    one, two = pictures(folder), pictures(other)
    return [
        int(name[6:8])
        for name in sorted({*one, *two})
        if name[:5] == "frame" and one.get(name) != two.get(name)
    ]


def receipt(folder: str | Path) -> dict[str, object]:
    return dict(json.loads(Path(folder, "story.json").read_text()))


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_stopped_story_goes_on_to_the_bytes_of_an_unbroken_one(count: int, done: Said) -> None:
    folder = stop(count)
    err = done("render", "day.txt", "--resume", *QUICK)
    assert "folder: day-storyboard (the newest unfinished one of this story)" in err
    assert pictures(folder) == pictures("whole")
    assert {file.name for file in folder.iterdir()} == {file.name for file in Path("whole").iterdir()}
    found, wanted = receipt(folder), receipt("whole")
    assert found["story"] == wanted["story"] and wanted["resumed"] == []
    begun_at = [entry["frame"] for entry in found["resumed"]]  # type: ignore[attr-defined]
    assert begun_at == ([count + 1] if count < 5 else [])


def test_the_reference_page_names_every_key_of_the_journal() -> None:
    page = (Path(__file__).parents[1] / "docs/reference/resume.md").read_text(encoding="utf-8")
    head, first = map(json.loads, (stop(1) / JOURNAL).read_text().splitlines())
    assert [key for key in head if f"`{key}`" not in page] == []
    assert first.keys() <= {"frame", "seed", *receipt("whole")["frames"][0]}  # type: ignore[index]


def test_a_torn_journal_and_a_torn_frame_cost_only_what_came_after_them(done: Said) -> None:
    folder = stop(5)
    journal = folder / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-30])
    frame = folder / "frame-03.png"
    frame.write_bytes(frame.read_bytes()[:100])
    (folder / ".frame-05.png.part").write_bytes(b"torn")
    err = done("render", "day.txt", "--resume", "-o", folder, *QUICK)
    assert "not as they were written: 3; drawn again from frame 3 on" in err
    assert pictures(folder) == pictures("whole") and not list(folder.glob(".*"))


def test_a_damaged_frame_of_a_finished_story_is_drawn_again(done: Said, run: Run) -> None:
    Path("whole/frame-04.png").unlink()
    before = pictures("whole")
    assert "drawn again from frame 4" in done("render", "day.txt", "--resume", "-o", "whole", *QUICK)
    assert {name: content for name, content in pictures("whole").items() if name in before} == before
    assert run("render", "day.txt", "--resume", "-o", "whole", *QUICK)[1].startswith("nothing to do")


def test_resuming_what_is_not_there_begins_at_frame_1(done: Said) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "missing"):
        done("render", "day.txt", "--resume", "-o", folder, *QUICK)
        assert pictures(folder) == pictures("whole")
    shutil.copytree("whole", "day-storyboard")
    done("render", "day.txt", "--resume", *QUICK)
    assert pictures("day-storyboard-2") == pictures("whole")


def test_the_newest_unfinished_folder_of_the_same_story_is_taken(done: Said) -> None:
    stop(1), stop(2, "day-storyboard-2")
    Path("other.txt").write_text("Luna is sitting.")
    done("render", "other.txt", "-o", "day-storyboard-3", "--steps", "1")
    other = read_journal(Path("day-storyboard-3"))
    assert other is not None
    other.write(Path("day-storyboard-3"))
    os.utime(Path("day-storyboard", JOURNAL), (0, 0))
    assert "folder: day-storyboard-2" in done("render", "day.txt", "--resume", *QUICK)


def test_another_story_other_settings_and_another_bundle_are_refused_and_named(
    refused: Said,
) -> None:
    stop(2)
    Path("other.txt").write_text("title: A day\n" + "\n".join([*CAPTIONS[:4], "Luna waves."]))
    resume = ("--resume", "-o", "day-storyboard")
    assert "frame 5: `Milo waves.`, needed `Luna waves.`" in refused(
        2, "render", "other.txt", *resume, *QUICK
    )
    assert "seed: `3`, needed `4`" in refused(2, "render", "day.txt", *resume, "--steps", "2", "--seed", "4")
    assert "num inference steps: `2`, needed `4`" in refused(2, "render", "day.txt", *resume, "--seed", "3")
    manifest = Path("bundles/tiny/manifest.json")
    manifest.write_text(manifest.read_text() + "\n")
    err = refused(2, "render", "day.txt", *resume, *QUICK)
    assert "bundle: `tiny`" in err and "storyv-lite continue day-storyboard" in err
    assert "was begun with bundle `tiny`" in refused(4, "continue", "day-storyboard")
    Path("full").mkdir()
    Path("full/letter.txt").touch()
    assert "holds no story" in refused(2, "render", "day.txt", "--resume", "-o", "full")
    assert "`--force`" in refused(2, "render", "day.txt", "--resume", "--force")
    Path("day-storyboard", JOURNAL).write_text("{")
    assert "cannot be read" in refused(2, "continue", "day-storyboard")


def test_other_versions_and_threads_are_said_and_do_not_stop_the_story(done: Said) -> None:
    folder = stop(4)
    journal = (folder / JOURNAL).read_text().replace('"onnxruntime": "', '"onnxruntime": "0.')
    (folder / JOURNAL).write_text(journal.replace('"threads": ', '"threads": 9'))
    err = done("render", "day.txt", "--resume", *QUICK)
    assert "bytes may differ" in err and "onnxruntime 0." in err and "threads 9" in err


@pytest.mark.parametrize(
    "command",
    [
        ("render", "day.txt", "--resume", "-o", "day-storyboard", "--steps", "1"),
        ("redraw", "day-storyboard", "--frame", "1"),
        ("continue", "day-storyboard", "day.txt"),
    ],
)
def test_the_command_that_finishes_a_story_keeps_the_bundle(refused: Said, command: tuple[str, ...]) -> None:
    stop(2)
    err = refused(2, *command, "--bundle", "bundles/tiny")
    assert "storyv-lite continue day-storyboard --bundle bundles/tiny" in err


def test_a_folder_that_somebody_draws_into_is_refused(refused: Said) -> None:
    stop(2)
    with locked(Path("day-storyboard")):
        for arguments in (
            ("render", "day.txt", "--resume", *QUICK),
            ("render", "day.txt", "--force", "-o", "day-storyboard"),
            ("continue", "day-storyboard"),
        ):
            assert "another process is writing into `day-storyboard`" in refused(2, *arguments)


def poison(word: str) -> None:
    """Make the first token of `word` no number, so that a frame whose caption has it fails."""
    pipeline = StoryPipeline.from_bundle("bundles/tiny", "cpu")
    model = pipeline.model
    ids = [
        set(make_piece(0, query(text), model.story_tokenizer, model.dims).ids)
        for text in (f"Milo {word}.", "Milo is waving. He is standing. Luna is sitting. They have a ball.")
    ]
    file = Path("bundles/tiny") / pipeline.bundle.components["token_embedding"][0].parts[0].file  # type: ignore[index]
    table = np.load(file)
    table[sorted(ids[0] - ids[1])] = np.nan
    np.save(file, table)
    manifest = json.loads(Path("bundles/tiny/manifest.json").read_text())
    manifest["components"]["token_embedding"]["variants"][0]["parts"][0]["sha256"] = hash_file(file)
    Path("bundles/tiny/manifest.json").write_text(json.dumps(manifest))


def test_a_frame_that_fails_ends_the_story_which_goes_on_without_it_when_asked(done: Said, run: Run) -> None:
    poison("umbrella")
    Path("bad.txt").write_text("Milo is waving.\nMilo umbrella.\nHe is standing.\nLuna is sitting.\n")
    code, out, err = run("render", "bad.txt", *QUICK)
    assert (code, out) == (8, "")
    assert "error: frame 2 could not be drawn: `language_model` answered with NaN" in err
    assert "storyv-lite continue bad-storyboard" in err and "--keep-going" in err
    assert run("continue", "bad-storyboard")[0] == 8, "it is tried again"
    code, out, err = run("continue", "bad-storyboard", "--keep-going")
    assert code == 8 and "wrote bad-storyboard" in out and "1 of 4 frames could not be drawn: frame 2" in err
    frames = receipt("bad-storyboard")["frames"]
    assert [("error" in frame, frame.get("context_frames")) for frame in frames] == [  # type: ignore[attr-defined]
        (False, []), (True, None), (False, [1]), (False, [1, 3])
    ]  # fmt: skip
    run("render", "bad.txt", "-o", "once", "--keep-going", *QUICK)
    assert pictures("once") == pictures("bad-storyboard") and len(pictures("once")) == 4
    done("redraw", "bad-storyboard", "--frame", "2", "--caption", "Luna is waving.", "--follow")
    Path("good.txt").write_text("Milo is waving.\nLuna is waving.\nHe is standing.\nLuna is sitting.\n")
    done("render", "good.txt", "-o", "good", *QUICK)
    assert differing("bad-storyboard", "good") == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_full_disk_is_one_error_and_leaves_a_story_that_goes_on(
    small_disk: Callable[[int], AbstractContextManager[None]],
    done: Said,
    refused: Said,
) -> None:
    sizes = {name: len(content) for name, content in pictures("whole").items()}
    for limit, there in ((sizes["frame-01.png"] - 100, 0), (sizes["storyboard.png"] - 100, 5)):
        with small_disk(limit):
            err = refused(2, "render", "day.txt", "--resume", "-o", "full", *QUICK)
        assert "`full` cannot be written: file too large" in err
        assert "make room, then: storyv-lite continue full" in err
        whole = pictures("whole")
        assert all(whole[name] == content for name, content in pictures("full").items())
        assert len(pictures("full")) == there and not list(Path("full").glob(".*.part"))
    done("continue", "full")
    assert pictures("full") == pictures("whole")


def test_one_frame_is_drawn_again_as_a_story_with_that_change_would_show_it(done: Said) -> None:
    shutil.copytree("whole", "new")
    done("redraw", "new", "--frame", "3", "--seed", "8", "--caption", "Luna is  waving.")
    assert differing("new", "whole") == [3]
    captions: list[object] = list(CAPTIONS)
    captions[2] = {"text": "Luna is waving.", "seed": 8}
    Path("changed.json").write_text(json.dumps({"title": "A day", "captions": captions}))
    done("render", "changed.json", "-o", "changed", *QUICK)
    assert differing("new", "changed") == [4, 5], "those were drawn after the old frame 3"
    done("redraw", "new", "--frame", "4", "--seed", "3", "--follow")
    assert pictures("new") == pictures("changed")
    assert receipt("new")["story"] == {
        "title": "A day",
        "captions": [
            *CAPTIONS[:2],
            {"text": "Luna is waving.", "seed": 8},
            {"text": CAPTIONS[3], "seed": 3},
            CAPTIONS[4],
        ],
    }


def test_the_receipt_of_a_redrawn_story_draws_the_same_again(done: Said) -> None:
    done("redraw", "whole", "--frame", "2", "--frame", "4")
    done("redraw", "whole", "--frame", "1", "--seed", "5")
    assert [frame["seed"] for frame in receipt("whole")["frames"]] == [5, 4, 3, 4, 3]  # type: ignore[attr-defined]
    command = shlex.split(str(receipt("whole")["command"]))
    with chdir("whole"):
        done(*command[1:], "-o", "../once-more")
    assert differing("once-more", "whole") == []
    assert receipt("once-more")["story"] == receipt("whole")["story"]
    stopped = stop(3, "again")
    Path(stopped, "frame-02.png").unlink()
    done("continue", "again")
    assert differing("again", "whole") == []


def test_a_branch_shares_what_it_does_not_change_and_leaves_the_story_alone(
    done: Said, refused: Said
) -> None:
    before = {file.name: file.read_bytes() for file in Path("whole").iterdir()}
    done("redraw", "whole", "--frame", "4", "--seed", "10", "--branch", "b0")
    assert {file.name: file.read_bytes() for file in Path("whole").iterdir()} == before
    assert differing("whole-b0", "whole") == [4]
    page = Path("whole-b0/index.html").read_text()
    assert 'src="frame-04.png"' in page and "data:image" not in page
    assert "is not empty" in refused(2, "redraw", "whole", "--frame", "1", "--branch", "b0")
    assert "no name for a branch" in refused(2, "redraw", "whole", "--frame", "1", "--branch", "../b")
    done("redraw", "whole-b0", "--frame", "1")
    assert {file.name: file.read_bytes() for file in Path("whole").iterdir()} == before


def test_a_branch_that_is_there_is_kept_and_another_name_is_asked_for(refused: Said) -> None:
    Path("whole-other").mkdir()
    Path("whole-other/note.txt").touch()
    said = refused(2, "redraw", "whole", "--frame", "1", "--branch", "other")
    assert "another name with `--branch`" in said and "-o" not in said.split("hint: ")[1]


def test_ten_branches_take_less_room_than_three_copies_of_the_story(done: Said) -> None:
    for frame in range(1, 6):
        done("redraw", "whole", "--frame", frame, "--branch", frame)
        done("redraw", "whole", "--frame", frame, "--follow", "--branch", f"{frame}-on")
    folders = list(Path().glob("whole-*"))
    assert len(folders) == 10
    assert sum(own_bytes(folder, [Path("whole")]) for folder in folders) < 3 * own_bytes(Path("whole"))


@pytest.mark.parametrize("then", [("redraw", "--frame", "2"), ("continue", "more.txt")])
def test_what_a_kill_interrupts_is_finished_by_continue(
    then: tuple[str, ...], done: Said, refused: Said
) -> None:
    """The journal as the command leaves it when it is killed behind its first frame, and before its line."""
    Path("more.txt").write_text("title: More\nLuna waves.\nMilo is sitting.\n")
    shutil.copytree("whole", "cut")
    done(then[0], "whole", *then[1:])
    journal = read_journal(Path("whole"))
    assert journal is not None
    redrawn = {"redraw": 2, "continue": 6}[then[0]]
    shutil.copy(Path("whole", f"frame-{redrawn:02}.png"), "cut")
    dataclasses.replace(journal, records=journal.records[:5]).write(Path("cut"))
    for arguments in (("redraw", "cut", "--frame", "1"), ("continue", "cut", "more.txt")):
        assert "is not finished" in refused(2, *arguments)
    done("continue", "cut")
    assert pictures("cut") == pictures("whole")


def test_damage_while_a_frame_is_redrawn_brings_back_what_the_others_were_drawn_behind(
    done: Said,
) -> None:
    shutil.copytree("whole", "cut")
    done("redraw", "whole", "--frame", "2")
    journal = read_journal(Path("whole"))
    assert journal is not None
    shutil.copy("whole/frame-02.png", "cut")  # the new one, and the kill came before its line
    Path("cut/frame-04.png").unlink()
    dataclasses.replace(journal, records=journal.records[:5]).write(Path("cut"))
    done("continue", "cut")
    assert differing("cut", "whole") == []


def test_a_continued_story_is_the_long_one(done: Said) -> None:
    Path("more.txt").write_text("Luna waves.\nMilo is sitting.\n")
    Path("long.txt").write_text("title: A day\n" + "\n".join([*CAPTIONS, "Luna waves.", "Milo is sitting."]))
    done("render", "long.txt", "-o", "long", *QUICK)
    done("continue", "whole", "more.txt")
    assert pictures("whole") == pictures("long")


@pytest.mark.slow
def test_frames_get_another_digit_where_the_hundredth_comes(done: Said) -> None:
    Path("short.txt").write_text("Milo is waving.\n" * 98)
    Path("more.txt").write_text("Luna is sitting.\n" * 3)
    Path("long.txt").write_text("title: Short\n" + "Milo is waving.\n" * 98 + "Luna is sitting.\n" * 3)
    quick = ("--steps", "1", "--guidance", "1")
    done("render", "short.txt", "-o", "short", *quick)
    done("render", "long.txt", "-o", "long", *quick)
    done("continue", "short", "more.txt")
    assert pictures("short") == pictures("long") and Path("short/frame-001.png").exists()


def test_names_get_another_digit_whenever_that_was_interrupted() -> None:
    journal = read_journal(Path("whole"))
    assert journal is not None
    longer = journal.retold(extended(journal.story.order, [Caption("Milo waves.")] * 95))
    os.rename("whole/frame-02.png", "whole/frame-002.png")
    pipeline = StoryPipeline.from_bundle("bundles/tiny", "cpu")
    assert StoryboardFolder(Path("whole"), longer, pipeline).go_on(retry=False, resumed=False) == []
    assert sorted(file.name for file in Path("whole").glob("frame-*")) == [
        f"frame-00{n}.png" for n in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("redraw", "none", "--frame", "1"), 2, "holds no story"),
        (("continue", "none"), 2, "holds no story"),
        (("redraw", "whole", "--frame", "6"), 2, "there is no frame 6"),
        (("redraw", "whole", "--frame", "1", "--frame", "2", "--caption", "Milo waves."), 2, "one caption"),
        (("redraw", "whole", "--frame", "1", "--caption", "x" * 2000), 2, "2,000 characters"),
        (("redraw", "whole", "--frame", "1", "--caption", "Milo waves and " * 30), 2, "frame 1 needs"),
        (("redraw", "whole", "--frame", "1", "--caption", ""), 2, '--caption "Luna is waving."'),
        (("redraw", "whole", "--frame", "1", "--bundle", "none"), 4, "is no bundle"),
        (("redraw", "whole", "--frame", "1", "--provider", "none"), 5, "`none` is no provider"),
        (("continue", "whole", "--provider", "none"), 5, "`none` is no provider"),
        (("continue", "whole", "none.txt"), 2, "there is no file"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(
    arguments: tuple[str, ...], code: int, says: str, refused: Said
) -> None:
    before = {file.name: file.read_bytes() for file in Path("whole").iterdir()}
    assert says in refused(code, *arguments)
    assert {file.name: file.read_bytes() for file in Path("whole").iterdir()} == before
