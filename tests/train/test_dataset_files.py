"""A data set that is written is read back as what it was, and a damaged one is refused by line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storyv_lite.errors import OutputError, StoryError
from storyv_lite.train.toonworld.dataset_files import read_dataset, write_dataset
from storyv_lite.train.toonworld.draw import render
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import sample_story


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder, 2, 3, split="test", seed=7, image_size=64)
    return folder


def test_a_written_set_reads_back_as_the_stories_it_was_made_of(made: Path) -> None:
    stories = read_dataset(made)
    told = [sample_story(story_seed("test", 7, index), 3, "test") for index in range(2)]
    for entry, story in zip(stories, told, strict=True):
        assert [frame.caption for frame in entry.frames] == [frame.reference for frame in story.frames]
        assert [frame.original for frame in entry.frames] == [frame.original for frame in story.frames]
        for read, frame in zip(entry.frames, story.frames, strict=True):
            picture = render(frame.scene, 64)
            assert np.array_equal(np.asarray(Image.open(made / read.image)), picture.image)
            assert tuple(character.name for character in read.characters) == frame.names
            for character, mask in zip(read.characters, picture.masks, strict=True):
                assert np.array_equal(np.asarray(Image.open(made / character.mask)), mask)
    about = json.loads((made / "dataset.json").read_text())
    assert about["frames"] == 6 and (made / "characters" / "milo.png").is_file()


def test_the_same_arguments_write_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", 2, 3, split="test", seed=7, image_size=64)

    def digest(folder: Path) -> dict[str, str]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    assert digest(made) == digest(tmp_path / "again")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match="not an empty folder"):
        write_dataset(tmp_path, 1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 of .* is not JSON"),
        ('{"frames": [{"caption": "Milo waves."}]}', "misses 'image'"),
        ('{"frames": [{"image": "no.png", "caption": "Milo waves."}]}', "`no.png` is not there"),
        ('{"frames": [{"image": "../x.png", "caption": "Milo waves."}]}', "leads out of the folder"),
        ('{"frames": [{"image": "/etc/passwd", "caption": "Milo waves."}]}', "leads out of the folder"),
    ],
)
def test_a_damaged_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "story.jsonl").write_text(line)
    with pytest.raises(StoryError, match=message):
        read_dataset(tmp_path)


def test_a_set_needs_no_more_than_pictures_and_captions(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = {"frames": [{"image": "a.png", "caption": "Ada reads.", "characters": ["ada"]}]}
    (tmp_path / "story.jsonl").write_text(json.dumps(line))
    (story,) = read_dataset(tmp_path)
    assert story.frames[0].original == "Ada reads." and story.frames[0].characters[0].name == "ada"
    with pytest.raises(StoryError, match=r"holds no `story\.jsonl`"):
        read_dataset(tmp_path / "elsewhere")
