"""What is to be drawn in a folder and what is there already: the journal of a story at work.

`journal.jsonl` lies beside the frames while a story is not finished. Its first line says everything that
decides the pictures; then comes one line per finished take, written when the frame's file is on the disk.
A finished story has the same in its receipt, `story.json`. Knows these two formats; not how a frame is made.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storyv_lite.errors import OutputError, StoryError
from storyv_lite.runtime.disk import append_line, write_file
from storyv_lite.runtime.takes import intact, live, tell
from storyv_lite.story import Story, Take, parse

SCHEMA = 1
JOURNAL, RECEIPT = "journal.jsonl", "story.json"
KNOWN = ("seed", "sampler", "num_inference_steps", "guidance_scale", "timestep_spacing")
CONTEXT = ("context_tokens", "kv_cache")  # None, and in older journals absent, for what the bundle says
SPELL_OUT = "spell_out"  # absent in older journals

Record = dict[str, Any]  # of one take: at least `frame` (from 1), and `sha256` of its file or an `error`


@dataclass(frozen=True)
class Journal:
    """A story with everything that decides its pictures, and a record of each take that was drawn."""

    title: str  # heads sheet and page
    story: Story
    settings: Mapping[str, Any]  # those of `pipeline.Settings`
    bundle: Mapping[str, str]  # name, sha256; precision, where a checkpoint is drawn with
    made_with: Mapping[str, Any]  # what bytes may depend on beside: versions, threads, provider
    records: tuple[Record, ...] = ()  # of the first takes, in order
    resumed: tuple[Mapping[str, Any], ...] = ()
    branch_of: str = ""

    @property
    def pending(self) -> tuple[Take, ...]:
        """Takes that are still to be drawn, in order."""
        return self.story.order[len(self.records) :]

    def shown(self) -> list[Record | None]:
        """The latest record of every frame, None where it has not been drawn."""
        latest: list[Record | None] = [None] * len(self.story.captions)
        for record in self.records:
            latest[record["frame"] - 1] = record
        return latest

    def retold(self, takes: Sequence[Take]) -> "Journal":
        """The journal with other takes, which begin with the old ones; those without effect are left out."""
        kept = live(takes)
        records = tuple(self.records[place] for place in kept if place < len(self.records))
        return replace(self, story=tell(self.story.title, [takes[place] for place in kept]), records=records)

    def without(self, bad: Sequence[int]) -> "Journal":
        """The journal when these frames (from 0) are lost: as far as it still stands."""
        stands = intact(self.story.order[: len(self.records)], bad)
        return replace(self, records=self.records[:stands])

    def differences(self, wanted: "Journal") -> list[str]:
        """What `wanted` asks for that this journal was not begun with: found, and needed."""
        found: list[str] = []
        _compare(found, "title", self.story.title, wanted.story.title)
        _compare(found, "number of frames", len(self.story.captions), len(wanted.story.captions))
        pairs = zip(self.story.captions, wanted.story.captions, strict=False)
        for number, (mine, other) in enumerate(pairs, start=1):
            _compare(found, f"frame {number}", mine.text, other.text)
            _compare(found, f"seed of frame {number}", mine.seed, other.seed)
        if not found:
            _compare(found, "order of drawing", _order(self.story), _order(wanted.story))
        for name in KNOWN:
            _compare(found, name.replace("_", " "), self.settings[name], wanted.settings[name])
        for name in CONTEXT:
            if wanted.settings[name] is not None:  # else it goes on as it was begun
                _compare(found, name.replace("_", " "), self.settings[name], wanted.settings[name])
        _compare(found, "spelling out", self.settings[SPELL_OUT], wanted.settings[SPELL_OUT])
        _compare(found, "precision", self.bundle.get("precision"), wanted.bundle.get("precision"))
        if self.bundle["sha256"] != wanted.bundle["sha256"]:
            found.append(f"bundle: {_bundle(self.bundle)}, needed {_bundle(wanted.bundle)}")
        return found

    def made_otherwise(self, now: Mapping[str, Any]) -> list[str]:
        """Versions, threads and provider that are others now, as text."""
        found: list[str] = []
        then, flat = ({**m, **m.get("versions", {}), **m.get("ways", {})} for m in (self.made_with, now))
        for name in sorted((then.keys() | flat.keys()) - {"versions", "plan", "ways"}):
            if then.get(name) != flat.get(name):
                found.append(f"{name} {then.get(name)} then, {flat.get(name)} now")
        return found

    def write(self, folder: Path) -> None:
        """Put the whole journal in place, in one step. Raises `OSError`."""
        head = {
            "schema": SCHEMA,
            "title": self.title,
            "story": self.story.as_json(),
            "settings": dict(self.settings),
            "bundle": dict(self.bundle),
            "made_with": dict(self.made_with),
            "resumed": list(self.resumed),
            "branch_of": self.branch_of,
        }
        write_file(folder / JOURNAL, b"".join(map(_line, (head, *self.records))))

    def append(self, folder: Path, record: Record) -> "Journal":
        """Add the record of the next take, here and on the disk. Raises `OSError`."""
        append_line(folder / JOURNAL, _line(record))
        return replace(self, records=(*self.records, record))


def read_journal(folder: Path) -> Journal | None:
    """The journal in `folder`, else what the receipt of a finished story says; None where there is neither.

    Lines behind a torn one are as good as not written. Raises `OutputError` when the first line, or the
    receipt, cannot be understood.
    """
    readers: tuple[tuple[str, Callable[[bytes], Journal]], ...] = (
        (JOURNAL, _from_lines),
        (RECEIPT, _from_receipt),
    )
    for name, reader in readers:
        file = folder / name
        try:
            return reader(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, StoryError) as fault:
            raise OutputError(
                f"`{file}` cannot be read, so what is in `{folder}` is not known",
                "draw into another folder with `-o`",
            ) from fault
    return None


def _from_lines(content: bytes) -> Journal:
    first, *lines = content.split(b"\n")
    head = json.loads(first)
    if head["schema"] != SCHEMA:
        raise ValueError(f"schema {head['schema']}")
    story = _story(head["story"])
    records: list[Record] = []
    for take, line in zip(story.order, lines, strict=False):
        try:
            record = json.loads(line)
            if record["frame"] != take.frame + 1:
                break
        except (ValueError, KeyError, TypeError):
            break
        records.append(record)
    return Journal(
        head["title"],
        story,
        _settings(head["settings"]),
        _known(head["bundle"]),
        dict(head["made_with"]),
        tuple(records),
        tuple(head["resumed"]),
        head["branch_of"],
    )


def _from_receipt(content: bytes) -> Journal:
    receipt = json.loads(content)
    story = _story(receipt["story"])
    frames = {number: {"frame": number, **one} for number, one in enumerate(receipt["frames"], start=1)}
    if len(frames) != len(story.captions):
        raise ValueError("frames are missing")
    for record in frames.values():
        record.pop("file", None)
    made_with = {name: receipt[name] for name in ("versions", "threads")}
    if receipt.get("tile"):
        made_with["tile"] = receipt["tile"]
    if receipt.get("plan"):
        made_with["plan"] = {name: receipt["plan"][name] for name in ("choice", "budget")}
        made_with["ways"] = receipt["plan"].get("ways", {})
    return Journal(
        receipt.get("title", story.title),
        story,
        _settings(receipt["settings"]),
        _known(receipt["bundle"]),
        {**made_with, "provider": receipt["device"]["provider"]},
        _records(story, frames),
        tuple(receipt.get("resumed", ())),
        receipt.get("branch_of", ""),
    )


def _settings(found: Mapping[str, Any]) -> dict[str, Any]:
    """Raises `KeyError`."""
    held = {name: found.get(name) for name in CONTEXT}
    return {name: found[name] for name in KNOWN} | held | {SPELL_OUT: bool(found.get(SPELL_OUT))}


def _known(bundle: Mapping[str, Any]) -> dict[str, str]:
    """What a journal keeps of a bundle. Raises `KeyError`."""
    kept = {name: str(bundle[name]) for name in ("name", "sha256")}
    return kept | ({"precision": str(bundle["precision"])} if "precision" in bundle else {})


def _records(story: Story, frames: Mapping[int, Record]) -> tuple[Record, ...]:
    """One record per take; the picture of a replaced one is gone, so no file is as it was."""
    last = {take.frame: place for place, take in enumerate(story.order)}
    return tuple(
        frames[take.frame + 1] if last[take.frame] == place else {"frame": take.frame + 1, "sha256": ""}
        for place, take in enumerate(story.order)
    )


def _story(value: Any) -> Story:
    return parse(json.dumps(value), "the story", ".json")


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _compare(found: list[str], name: str, mine: object, other: object) -> None:
    if mine != other:
        found.append(f"{name}: {_text(mine)}, needed {_text(other)}")


def _text(value: object) -> str:
    return "none" if value is None else f"`{value}`"


def _order(story: Story) -> str:
    return " ".join(str(take.frame + 1) for take in story.order)


def _bundle(bundle: Mapping[str, str]) -> str:
    return f"`{bundle['name']}` ({bundle['sha256'][:12]})"
