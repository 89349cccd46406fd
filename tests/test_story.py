"""Reading stories: what is understood, what is refused, and that each refusal helps."""

import io
import json
from pathlib import Path

import pytest

from storyv_lite.errors import StoryError
from storyv_lite.story import MAX_LINE_CHARACTERS, Story, parse, read_story, split_sentences

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").iterdir())


def captions(story: Story) -> list[str]:
    return [caption.text for caption in story.captions]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path | str) -> StoryError:
    with pytest.raises(StoryError) as caught:
        read_story(path)
    assert caught.value.hint and caught.value.exit_code == 2
    return caught.value


def test_one_sentence_a_line_is_one_frame_a_line_with_or_without_full_stops() -> None:
    assert captions(Story.from_text("Milo waves\nLuna jumps.\nThey run")) == [
        "Milo waves",
        "Luna jumps.",
        "They run",
    ]


def test_lines_without_capitals_and_full_stops_are_sentences_too() -> None:
    text = "milo waves\nluna jumps\nthey run"
    assert captions(Story.from_text(text)) == ["milo waves", "luna jumps", "they run"]


def test_comments_blank_lines_and_a_title_line_are_no_frames() -> None:
    story = Story.from_text("# a comment\n\nTitle:  The day \n\nMilo waves.\n  # another\n\nHe runs.\r\n")
    assert story.title == "The day"
    assert captions(story) == ["Milo waves.", "He runs."]


def test_a_line_of_several_sentences_is_split() -> None:
    assert captions(Story.from_text("Milo waves. He runs! Does she?")) == [
        "Milo waves.",
        "He runs!",
        "Does she?",
    ]


def test_prose_broken_at_the_margin_is_joined_before_it_is_split() -> None:
    text = "Milo is standing on the\nbeach. He sees\nLuna. They run.\n\nZara waves\nto them."
    expected = ["Milo is standing on the beach.", "He sees Luna.", "They run.", "Zara waves to them."]
    assert captions(Story.from_text(text)) == expected


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Mr. Fox and Dr. J. Bear run. They stop.", ["Mr. Fox and Dr. J. Bear run.", "They stop."]),
        ("Milo waits... and waits... Then he runs.", ["Milo waits... and waits...", "Then he runs."]),
        ("Milo waits… Luna runs.", ["Milo waits…", "Luna runs."]),
        ('"Stop! Wait!" says Milo. Luna stops.', ['"Stop! Wait!" says Milo.', "Luna stops."]),
        ("“Look!” Milo says. “A cake.” Luna runs.", ["“Look!” Milo says.", "“A cake.”", "Luna runs."]),
        ("No. 5 is red. No. He is here.", ["No. 5 is red.", "No.", "He is here."]),
        ("It costs 3.50 at e.g. Rex's. He pays.", ["It costs 3.50 at e.g. Rex's.", "He pays."]),
        ("It is I. You wave.", ["It is I.", "You wave."]),
        ("What?! Yes!! (Milo waves.) Luna too.", ["What?!", "Yes!!", "(Milo waves.)", "Luna too."]),
        ('An open " quote. Luna runs.', ['An open " quote.', "Luna runs."]),
        ("ミロは走る。ルナも走る！", ["ミロは走る。", "ルナも走る！"]),
        ("1. Milo waves.", ["1. Milo waves."]),
        ("   ", []),
    ],
)
def test_sentences_end_where_a_reader_hears_them_end(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"\xef\xbb\xbftitle: Caf\xc3\xa9\r\nMilo waves.\r\nHe runs.\r\n")
    assert read_story(path) == Story.from_text("title: Café\nMilo waves.\nHe runs.")


def test_json_takes_an_object_or_a_list_of_texts_or_objects(tmp_path: Path) -> None:
    wanted = ["Milo waves. Twice.", "He runs."]
    full = {"title": "T", "captions": [wanted[0], {"text": wanted[1]}]}
    story = read_story(write(tmp_path, "a.json", json.dumps(full)))
    assert (story.title, captions(story)) == ("T", wanted)
    assert captions(read_story(write(tmp_path, "b.json", json.dumps(wanted)))) == wanted


def test_the_story_inside_a_receipt_is_read(tmp_path: Path) -> None:
    receipt = {"schema": 1, "story": {"title": "T", "captions": ["Milo waves."]}, "seed": 3}
    assert read_story(write(tmp_path, "story.json", json.dumps(receipt))) == Story.from_text(
        "title: T\nMilo waves."
    )


def test_jsonl_takes_one_caption_a_line_and_an_optional_title(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"title": "T"}\n{"text": "Milo waves."}\n\n"He runs."\n')
    assert read_story(path) == Story.from_text("title: T\nMilo waves.\nHe runs.")


@pytest.mark.parametrize("content", ["Milo waves.\n", '["Milo waves."]', '{"captions": ["Milo waves."]}'])
def test_standard_input_is_text_or_json(content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    assert captions(read_story("-")) == ["Milo waves."]


def test_two_hundred_sentences_are_a_story() -> None:
    assert len(Story.from_text("Milo waves. " * 200).captions) == 200


@pytest.mark.parametrize("content", ["", "\n \n", "# only a comment\n", "title: alone\n"])
def test_a_story_without_a_sentence_is_refused(tmp_path: Path, content: str) -> None:
    assert "holds no sentence" in refusal(write(tmp_path, "a.txt", content)).message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.txt").message
    assert "is a folder" in refusal(tmp_path).message


@pytest.mark.parametrize(
    "content", [b"Milo waves.\n\xff\xfe", "Milo waves.".encode("utf-16"), b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_not_utf8_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "is not UTF-8" in refusal(write(tmp_path, "a.txt", content)).message


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_malformed_json_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content = (
        '{"captions": [\n"Milo waves.",,\n]}' if name == "a.json" else '{"text": "Milo waves."}\n{"text": \n'
    )
    assert "line 2" in refusal(write(tmp_path, name, content)).message


@pytest.mark.parametrize(
    "content", ["3", '"text"', '{"captions": "Milo"}', "[" * 100_000, "[" + "1" * 5_000 + "]"]
)
def test_json_that_is_no_story_is_refused(tmp_path: Path, content: str) -> None:
    assert "cannot be read as a story" in refusal(write(tmp_path, "a.json", content)).message


def test_ten_thousand_characters_on_a_line_are_refused_with_the_line(tmp_path: Path) -> None:
    for line in ("a" * 10_000, "Milo waves. " * 834):
        message = refusal(write(tmp_path, "a.txt", f"Milo waves.\n{line}\n")).message
        assert "line 2" in message and f"{MAX_LINE_CHARACTERS:,}" in message


def test_characters_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "not text" in refusal(write(tmp_path, "a.txt", b"Milo\x00 waves.\n")).message
    assert "not text" in refusal(write(tmp_path, "a.json", '["Milo \\ud800 waves."]')).message


def test_a_file_beyond_one_mebibyte_is_refused(tmp_path: Path) -> None:
    assert "1 MiB" in refusal(write(tmp_path, "a.txt", "Milo waves.\n" * 100_000)).message


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(StoryError) as caught:
        parse('{"captions": ["", 3, {"txt": "a"}], "titel": "T", "title": 4}', "`a.json`", ".json")
    for part in ("caption 1: the caption is empty", "caption 2", "`txt`", "`titel`", "`title` is not a text"):
        assert part in caught.value.message


def test_a_caption_may_have_a_seed_of_its_own(tmp_path: Path) -> None:
    for name, text in (("a.json", '["Milo waves.", {"text": "He runs.", "seed": 7}]'),
                       ("a.jsonl", '"Milo waves."\n{"text": "He runs.", "seed": 7}')):  # fmt: skip
        read = read_story(write(tmp_path, name, text))
        assert [(one.text, one.seed) for one in read.captions] == [("Milo waves.", None), ("He runs.", 7)]
        assert parse(json.dumps(read.as_json()), "it", ".json") == read


def test_the_order_of_drawing_is_read_and_must_end_with_the_captions() -> None:
    takes = [{"frame": 1, "text": "A."}, {"frame": 2, "text": "B."}, {"frame": 1, "text": "C.", "seed": 2}]
    told = {"title": "T", "captions": [{"text": "C.", "seed": 2}, "B."], "takes": takes}
    read = parse(json.dumps(told), "it", ".json")
    assert [take.frame for take in read.order] == [0, 1, 0] and read.as_json() == told


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"captions": [{"text": "A.", "seed": -1}]}, "caption 1: the seed is `-1`"),
        ({"captions": [{"text": "A.", "seed": True}]}, "caption 1: the seed is `True`"),
        ({"takes": 3}, "`takes` is no list"),
        ({"takes": [3]}, "take 1: a frame of 1 to 1"),
        ({"takes": [{"frame": 2, "text": "B."}]}, "take 1: a frame of 1 to 1"),
        ({"takes": [{"frame": 1, "text": ""}]}, "take 1: the caption is empty"),
        ({"takes": [{"frame": 1, "text": "A."}]}, "the last take of every frame"),
    ],
)
def test_a_seed_or_an_order_that_cannot_be_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(StoryError) as caught:
        parse(json.dumps({"captions": ["A.", "B."], **change}), "it", ".json")
    assert says in caught.value.message


def test_many_faults_are_counted_not_listed() -> None:
    with pytest.raises(StoryError, match="and 40 more"):
        parse("\n".join(["{"] * 50), "`a.jsonl`", ".jsonl")


def test_a_second_title_is_refused() -> None:
    with pytest.raises(StoryError, match="line 3: a title stands once"):
        Story.from_text("title: A\nMilo waves.\ntitle: B\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_story_of_two_to_twelve_frames(path: Path) -> None:
    assert 2 <= len(read_story(path).captions) <= 12


def test_the_picnic_has_five_sentences_two_characters_and_pronouns() -> None:
    picnic = captions(read_story(next(path for path in EXAMPLES if path.name == "picnic.txt")))
    words = " ".join(picnic).lower().replace(".", "").split()
    assert len(picnic) == 5 and {"milo", "luna"} <= set(words)
    assert sum(word in ("he", "she", "him", "her", "they") for word in words) >= 2
