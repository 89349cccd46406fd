"""A story as the user writes it: a title and one caption per frame, read from text, JSON, JSONL or stdin.

Knows files, lines and sentences; not which words a model knows, nor how many tokens a caption may have.
Whatever is wrong with a file is told at once, each fault with its line.
"""

import json
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storyv_lite.errors import StoryError

MAX_FILE_BYTES = 1 << 20
MAX_LINE_CHARACTERS = 8_000  # a paragraph of prose fits, a file without line breaks does not
MAX_CAPTION_CHARACTERS = 1_000
SHOWN_FAULTS = 10

NEVER_LAST = frozenset("mr mrs ms dr st prof jr sr vs capt gen col lt rev e.g i.e".split())
SAYS = "says?|said|asks?|asked|shouts?|shouted|cries|cried|calls?|called|whispers?|whispered|yells?|yelled"
SPEECH = re.compile(rf"(?:[A-Z]\w*|the \w+) (?:{SAYS}|thinks?|thought|answers?|answered|replies|replied)\b")
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”]*")
OPENING_QUOTES = "“„«"
CLOSING_QUOTES = "”»"


@dataclass(frozen=True)
class Caption:
    """What one frame shows, as one plain sentence; with a seed of its own, or None for the story's."""

    text: str
    seed: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text} if self.seed is None else {"text": self.text, "seed": self.seed}


@dataclass(frozen=True)
class Take:
    """One drawing of one frame. A frame that is drawn again has several takes; the last one is shown."""

    frame: int  # from 0
    caption: Caption


@dataclass(frozen=True)
class Story:
    """Captions in order, one frame each; the title is empty when the author gave none.

    `takes` are empty where every frame is drawn once, in order. Else they say in which order what was drawn:
    each one behind the frames before it as they were shown at that time.
    """

    captions: tuple[Caption, ...]
    title: str = ""
    takes: tuple[Take, ...] = ()

    @property
    def order(self) -> tuple[Take, ...]:
        """Every take, in the order of drawing."""
        return self.takes or tuple(Take(frame, caption) for frame, caption in enumerate(self.captions))

    def as_json(self) -> dict[str, Any]:
        """What `parse` reads again, with `json.dumps` between."""
        captions = [one.text if one.seed is None else one.as_json() for one in self.captions]
        told: dict[str, Any] = {"title": self.title, "captions": captions}
        if self.takes:
            told["takes"] = [{"frame": one.frame + 1, **one.caption.as_json()} for one in self.takes]
        return told

    @classmethod
    def from_text(cls, text: str) -> "Story":
        """Read plain text as a `.txt` file is read. Raises `StoryError`."""
        return parse(text, "the text")


@dataclass(frozen=True)
class _Draft:
    """What a reader found before anything is judged: captions and faults, both with their place."""

    title: str
    captions: list[tuple[str, Caption]]  # each with its place
    faults: list[str]
    takes: tuple[Take, ...] = ()


def read_story(source: str | Path) -> Story:
    """Read a story file (`.txt`, `.json`, `.jsonl`; any other ending is read as text) or `-` for stdin.

    Raises `StoryError` when there is no such file, it is a folder, not UTF-8, too long, malformed or empty.
    """
    if str(source) == "-":
        return parse(_decode(sys.stdin.buffer.read(MAX_FILE_BYTES + 1), "stdin"), "stdin")
    path = Path(source)
    if path.is_dir():
        raise StoryError(f"`{path}` is a folder, and a story file is needed", _example(path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as missing:
        raise StoryError(f"there is no file `{path}`", _example(path)) from missing
    except OSError as failure:
        reason = (failure.strerror or str(failure)).lower()
        raise StoryError(
            f"`{path}` cannot be read: {reason}", "check the name and its permissions"
        ) from failure
    return parse(_decode(data, f"`{path}`"), f"`{path}`", path.suffix.lower())


def parse(text: str, name: str, suffix: str = "") -> Story:
    """Turn a file's text into a `Story`; `name` is how messages call it.

    Without a suffix the text is JSON when it begins as JSON does, else plain text. Raises `StoryError`, once,
    with every fault and its place.
    """
    if suffix == "":
        suffix = ".json" if text.lstrip().startswith(("{", "[")) else ".txt"
    readers = {".json": _read_json, ".jsonl": _read_jsonl}
    draft = readers.get(suffix, _read_plain)(text)
    faults = draft.faults + [f for place, caption in draft.captions for f in _check(place, caption.text)]
    if faults:
        shown = faults[:SHOWN_FAULTS]
        if len(faults) > SHOWN_FAULTS:
            shown.append(f"and {len(faults) - SHOWN_FAULTS} more")
        what = f" {shown[0]}" if len(faults) == 1 else "".join(f"\n  {fault}" for fault in shown)
        raise StoryError(f"{name} cannot be read as a story:{what}", _format_hint(suffix))
    if not draft.captions:
        raise StoryError(f"{name} holds no sentence, and at least one is needed", _format_hint(suffix))
    return Story(tuple(caption for _, caption in draft.captions), draft.title, draft.takes)


def split_sentences(text: str) -> list[str]:
    """Split prose into sentences; abbreviations, initials, ellipses and quoted speech stay whole."""
    text = " ".join(text.split())
    quoted = _quoted(text)
    sentences, start = [], 0
    for end in SENTENCE_END.finditer(text):
        rest = text[end.end() :].lstrip()
        if end.end() <= start or quoted[end.end() - 1] or not _ends_sentence(text[start : end.end()], rest):
            continue
        sentences.append(text[start : end.end()].strip())
        start = end.end()
    return [sentence for sentence in [*sentences, text[start:].strip()] if sentence]


def _ends_sentence(sentence: str, rest: str) -> bool:
    if not rest or sentence[-1] in "。！？」』":
        return True
    opener = rest.lstrip("\"'“‘„«([")[:1]
    if not opener or opener.islower():
        return False
    last = sentence.split()[-1].lower().strip("\"'“”‘’«»()[]").removesuffix(".")
    if sentence.endswith(".") and (last in NEVER_LAST or (len(last) == 1 and last.isalpha() and last != "i")):
        return False
    if re.fullmatch(r"\d+\.", sentence) or (re.search(r"\bNo\.$", sentence) and opener.isdigit()):
        return False
    return not (sentence[-1] in "\"'”’»" and SPEECH.match(rest))


def _quoted(text: str) -> list[bool]:
    """For every character: is a double quotation open after it? Unbalanced quotes count as none."""
    inside, marks = False, []
    for mark in text:
        if mark == '"':
            inside = not inside
        elif mark in OPENING_QUOTES:
            inside = True
        elif mark in CLOSING_QUOTES:
            inside = False
        marks.append(inside)
    return marks if not inside else [False] * len(text)


def _read_plain(text: str) -> _Draft:
    title = ""
    captions: list[tuple[str, Caption]] = []
    faults: list[str] = []
    for block in _blocks(text):
        lines = [(number, line) for number, line in block if len(line) <= MAX_LINE_CHARACTERS]
        faults += [
            f"line {number}: {len(line):,} characters, at most {MAX_LINE_CHARACTERS:,} fit"
            for number, line in block
            if len(line) > MAX_LINE_CHARACTERS
        ]
        if not lines:
            continue
        if match := re.match(r"title\s*:", lines[0][1], re.IGNORECASE):
            if captions or title:
                faults.append(f"line {lines[0][0]}: a title stands once, before the first sentence")
            title = " ".join(lines[0][1][match.end() :].split())
            lines = lines[1:]
        if _is_wrapped([line for _, line in lines]):
            lines = [(lines[0][0], " ".join(line for _, line in lines))]
        for number, line in lines:
            captions += [(f"line {number}", Caption(sentence)) for sentence in split_sentences(line)]
    return _Draft(title, captions, faults)


def _blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """Runs of numbered lines between blank lines; comments are left out, a title begins a run."""
    block: list[tuple[int, str]] = []
    for number, raw in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        line = raw.strip()
        if line.startswith("#"):
            continue
        if block and (not line or re.match(r"title\s*:", line, re.IGNORECASE)):
            yield block
            block = []
        if line:
            block.append((number, line))
    if block:
        yield block


def _is_wrapped(lines: list[str]) -> bool:
    """Is this run prose broken at the margin, rather than one sentence a line?"""
    ended = [bool(re.search(r"[.!?…。！？][\"'”’»)\]]*$", line)) for line in lines]
    if not any(ended) and all(line[0].islower() for line in lines):
        return False  # one sentence a line, by somebody who writes no capitals and no full stops
    broken = not all(ended[:-1])
    return broken and any(line[0].islower() or len(split_sentences(line)) > 1 for line in lines[1:])


def _read_json(text: str) -> _Draft:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as fault:
        return _Draft("", [], [f"line {fault.lineno}, column {fault.colno}: {fault.msg.lower()}"])
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits, a thousand brackets
        return _Draft("", [], [str(fault)])
    if isinstance(value, dict) and "story" in value:  # the receipt of a drawn story can be drawn again
        value, shown = value["story"], value.get("title", "")
        if isinstance(value, dict) and not value.get("title"):
            value = {**value, "title": shown}
    if isinstance(value, list):
        value = {"captions": value}
    if not isinstance(value, dict) or not isinstance(value.get("captions"), list):
        return _Draft("", [], ["a list of captions, or an object with `title` and `captions`, is needed"])
    title, faults = value.get("title", ""), _unknown_keys(value, {"title", "captions", "takes"}, "the object")
    if not isinstance(title, str):
        title, faults = "", [*faults, "`title` is not a text"]
    captions = []
    for number, item in enumerate(value["captions"], start=1):
        caption, item_faults = _caption(item, f"caption {number}")
        captions.append((f"caption {number}", caption))
        faults += item_faults
    takes, take_faults = _takes(value.get("takes", []), [caption for _, caption in captions])
    return _Draft(" ".join(title.split()), captions, faults + take_faults, takes)


def _read_jsonl(text: str) -> _Draft:
    title, captions, faults = "", [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as fault:
            reason = fault.msg.lower() if isinstance(fault, json.JSONDecodeError) else str(fault)
            faults.append(f"line {number}: {reason}")
            continue
        if isinstance(value, dict) and value.keys() == {"title"} and isinstance(value["title"], str):
            title = " ".join(value["title"].split())
            continue
        caption, item_faults = _caption(value, f"line {number}")
        captions.append((f"line {number}", caption))
        faults += item_faults
    return _Draft(title, captions, faults)


def _caption(item: object, place: str) -> tuple[Caption, list[str]]:
    """One JSON caption, or a stand-in that passes the later checks and the faults found."""
    faults: list[str] = []
    seed = None
    if isinstance(item, dict):
        faults, seed = _unknown_keys(item, {"text", "seed"}, place), item.get("seed")
        item = item.get("text")
    if not isinstance(item, str):
        return Caption("-"), [*faults, f"{place}: a text, or an object with `text`, is needed"]
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        faults.append(f"{place}: the seed is `{seed}`; a whole number, 0 or more, is needed")
        seed = None
    return Caption(" ".join(item.split()), seed), faults


def _takes(value: object, captions: list[Caption]) -> tuple[tuple[Take, ...], list[str]]:
    """The takes of a receipt. Each frame comes after the ones before it, and last as its caption says."""
    if not isinstance(value, list):
        return (), ["`takes` is no list"]
    takes: list[Take] = []
    faults: list[str] = []
    last: dict[int, Caption] = {}
    for number, item in enumerate(value, start=1):
        rest = dict(item) if isinstance(item, dict) else {}
        frame = rest.pop("frame", None)
        highest = min(len(last) + 1, len(captions))
        if not isinstance(frame, int) or not 1 <= frame <= highest:
            return (), [*faults, f"take {number}: a frame of 1 to {highest} is needed"]
        caption, item_faults = _caption(rest, f"take {number}")
        faults += [*item_faults, *_check(f"take {number}", caption.text)]
        takes.append(Take(frame - 1, caption))
        last[frame - 1] = caption
    if takes and not faults and [last.get(frame) for frame in range(len(captions))] != captions:
        faults.append("the last take of every frame is not its caption; leave `takes` out to draw it anew")
    return tuple(takes), faults


def _unknown_keys(value: dict[str, object], known: set[str], place: str) -> list[str]:
    unknown = sorted(set(value) - known)
    return [f"{place}: unknown key `{key}`, known are {', '.join(sorted(known))}" for key in unknown]


def _check(place: str, caption: str) -> list[str]:
    if not caption:
        return [f"{place}: the caption is empty"]
    if len(caption) > MAX_CAPTION_CHARACTERS:
        return [f"{place}: a caption of {len(caption):,} characters, at most {MAX_CAPTION_CHARACTERS:,} fit"]
    if any(unicodedata.category(mark) in ("Cc", "Cs") for mark in caption):
        return [f"{place}: holds characters that are not text"]
    return []


def _decode(data: bytes, name: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise StoryError(f"{name} is larger than 1 MiB", "split it into several stories")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data[: fault.start].count(b"\n") + 1
        raise StoryError(
            f"{name} is not UTF-8 text (line {line})", "save it as UTF-8 in your editor"
        ) from fault


def _example(path: Path) -> str:
    """A command that works where the user is."""
    siblings = sorted(path.glob("*.txt")) if path.is_dir() else []
    found = siblings[0] if siblings else Path("examples/picnic.txt")
    if found.is_file():
        return shlex.join(["storyv-lite", "render", str(found)])
    return 'echo "Milo is waving." | storyv-lite render -'


def _format_hint(suffix: str) -> str:
    if suffix == ".json":
        return '{"title": "The picnic", "captions": ["Milo is in the meadow.", "He waves."]}'
    if suffix == ".jsonl":
        return 'one caption a line: {"text": "Milo is in the meadow."}'
    return "write one sentence a line; `#` begins a comment, `title: ...` names the story"
