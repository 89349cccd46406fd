"""Sheets to look at: real tiny pictures, every caption below its own."""

from pathlib import Path

import pytest
from PIL import Image

from storyv_lite.benchmarks import sheets
from storyv_lite.runtime.pipeline import StoryPipeline


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> StoryPipeline:
    return StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1)


def test_captions_of_unseen_frames_follow_the_seeds(pipeline: StoryPipeline) -> None:
    assert sheets.unseen_captions(3) == sheets.unseen_captions(5)[:3]
    assert sheets.unseen_captions(3) != sheets.unseen_captions(3, seed=1)


def test_every_caption_stands_below_a_picture_of_its_own(pipeline: StoryPipeline) -> None:
    captions = ["Milo is waving.", "Luna is waving.", "Milo is waving."]
    first, second, again = sheets.one_by_one(pipeline, captions)
    assert [panel.caption for panel in (first, second, again)] == captions
    assert first.png == again.png != second.png


def test_all_sheets_are_written_as_pictures(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "unseen_captions", lambda count: ["Milo is waving.", "Luna is waving."])
    monkeypatch.setattr(sheets, "unseen_stories", lambda *_: ())
    monkeypatch.setattr(sheets, "UNUSUAL", sheets.UNUSUAL[:2])
    assert sheets.main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "new")]) == 0
    assert sheets.main(["--bundle", str(tiny_bundle), "--out", str(tmp_path / "new")]) == 2
    sizes = dict[str, tuple[int, int]]()
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as picture:
            sizes[path.name] = picture.size
    assert set(sizes) == {"frames.jpg", "unknown.jpg", "unusual.jpg"}
    assert sizes["unknown.jpg"][1] > sizes["frames.jpg"][1]


def test_a_bundle_that_is_not_there_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sheets.main(["--bundle", str(tmp_path / "none"), "--out", str(tmp_path / "new")]) == 4
    assert "error: " in capsys.readouterr().err
