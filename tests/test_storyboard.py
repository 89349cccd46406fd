"""The sheet and the page: they hold every frame, need nothing else, and run nothing."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from storyv_lite.runtime.storyboard import Panel, columns, page, sheet

EVIL = """<script>alert("hi")</script> & 'quotes' "double" </figcaption><img src=x onerror=alert(1)> $data"""


def panel(caption: str = "Milo waves.", color: str = "#4488cc", size: int = 64) -> Panel:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return Panel(caption, file.getvalue())


class Page(HTMLParser):
    """Every tag with its attributes, and the text of captions."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_picture_as_it_lies_on_the_disk() -> None:
    panels = [panel("Milo waves.", "#ff0000"), panel("He runs.", "#00ff00")]
    read = Page(page("T", panels, []))
    sources = [attrs["src"] or "" for tag, attrs in read.tags if tag == "img"]
    assert [base64.b64decode(source.split(",")[1]) for source in sources] == [one.png for one in panels]
    assert [attrs["alt"] for tag, attrs in read.tags if tag == "img"] == [
        "Picture 1: Milo waves.", "Picture 2: He runs."
    ]  # fmt: skip


def test_markup_in_captions_titles_and_details_is_inert() -> None:
    read = Page(page(EVIL, [Panel(EVIL, panel().png, EVIL)], [(EVIL, EVIL)]))
    assert [tag for tag, _ in read.tags].count("img") == 1
    assert not any(tag == "script" for tag, _ in read.tags)
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert (
        read.text.count(EVIL) == 6
    )  # title, heading, caption, what it was taken for, detail's name and value


def test_the_page_says_what_a_caption_was_taken_for_where_the_model_said_so() -> None:
    png = panel().png
    told = page("T", [Panel("He runs.", png, "milo running."), Panel("Luna waves.", png)], [])
    assert told.count("<small>") == 1 and "He runs.<small>taken for: milo running.</small>" in told


def test_the_page_asks_nothing_of_a_network_and_forbids_scripts() -> None:
    source = page("T", [panel()], [("Seed", "42")])
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link", source)
    policy = next(attrs["content"] for _, attrs in Page(source).tags if "http-equiv" in attrs)
    assert policy is not None and policy.startswith("default-src 'none'") and "script" not in policy


@pytest.mark.parametrize(
    ("count", "says"), [(1, "one picture<"), (5, "five pictures<"), (13, "13 pictures<")]
)
def test_the_page_counts_its_pictures(count: int, says: str) -> None:
    assert says in page("T", [panel()] * count, [])


def test_the_page_is_for_phones_and_for_dark_rooms() -> None:
    source = page("T", [panel()], [])
    assert 'name="viewport"' in source and "prefers-color-scheme: dark" in source


def test_the_sheet_holds_every_picture_in_reading_order() -> None:
    colors = ["#ff0000", "#00ff00", "#0000ff", "#ffff00", "#ff00ff"]
    board = sheet("A title", [panel(color=color) for color in colors])
    pixels = np.asarray(board)
    found = []
    for color in colors:
        rows, across = np.nonzero((pixels == np.frombuffer(bytes.fromhex(color[1:]), np.uint8)).all(axis=-1))
        assert len(rows) > 192 * 192 * 0.9
        found.append((int(rows.min()), int(across.min()), color))
    assert [color for *_, color in sorted((y // 40, x, color) for y, x, color in found)] == colors


def test_a_long_caption_makes_its_card_taller_not_wider() -> None:
    short, long = sheet("", [panel("Hi.")] * 2), sheet("", [panel("Milo waves and " * 20)] * 2)
    assert long.width == short.width and long.height > short.height


def test_a_word_wider_than_a_picture_is_broken() -> None:
    assert sheet("", [panel("a" * 500)]).height > 600


def test_an_untitled_sheet_has_no_room_for_a_title() -> None:
    assert sheet("", [panel()]).height < sheet("Title", [panel()]).height


@pytest.mark.parametrize(
    ("count", "across"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (9, 3), (12, 4), (200, 6)]
)
def test_columns_keep_the_sheet_near_a_square(count: int, across: int) -> None:
    assert columns(count) == across
