"""Writes stories of the cartoon world in the project's own dataset format (docs/reference/dataset.md).

The one home of that format: `write_dataset` makes it, `read_dataset` checks and reads any folder in it, the
user's own pictures included. A picture is loaded only when it is asked for.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from storyv_lite.errors import OutputError, StoryError
from storyv_lite.train.toonworld.cast import CAST, CastMember
from storyv_lite.train.toonworld.corpus import vocabulary
from storyv_lite.train.toonworld.draw import Picture, portrait, render
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import StoryFrame, reference_statistics, sample_story

SCHEMA = 1
ABOUT, STORIES = "dataset.json", "story.jsonl"


@dataclass(frozen=True)
class CharacterEntry:
    """A character in a frame: who, the mask file ("" when there is none), box (x0, y0, x1, y1) in pixels."""

    name: str
    mask: str = ""
    box: tuple[int, int, int, int] | None = None
    action: str = ""
    prop: str | None = None
    position: str = ""


@dataclass(frozen=True)
class FrameEntry:
    """One frame: picture file, caption (may hold references), original caption, who is in it, where."""

    image: str
    caption: str
    original: str
    characters: tuple[CharacterEntry, ...]
    place: str = ""


@dataclass(frozen=True)
class StoryEntry:
    """One line of story.jsonl."""

    id: str
    seed: int | None
    frames: tuple[FrameEntry, ...]


def write_dataset(
    folder: Path,
    stories: int,
    frames: int,
    *,
    split: str = "train",
    seed: int = 0,
    image_size: int = 256,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Draw `stories` stories of `frames` frames into the new folder `folder`; returns what dataset.json says.

    The same arguments write the same bytes. `progress` hears how many stories are done. Raises OutputError
    when the folder holds anything and `force` is off (on, files of the same names are replaced), ConfigError
    for an unknown split or a frame count out of range.
    """
    if folder.exists() and not (folder.is_dir() and (force or not any(folder.iterdir()))):
        raise OutputError(f"`{folder}` is not an empty folder", "name another folder, or empty this one")
    drawn = [sample_story(story_seed(split, seed, index), frames, split) for index in range(stories)]
    try:
        (folder / "characters").mkdir(parents=True, exist_ok=True)
        for who in CAST:
            _save(folder / "characters" / f"{who.name}.png", portrait(who.name, image_size))
            _write_json(folder / "characters" / f"{who.name}.json", character_card(who))
        lines = []
        for index, story in enumerate(drawn):
            name = f"story-{index:05d}"
            entries = [
                _draw(folder, f"{name}/frame-{number:02d}", frame, image_size)
                for number, frame in enumerate(story.frames, 1)
            ]
            lines.append(json.dumps({"id": name, "seed": story.seed, "frames": [asdict(e) for e in entries]}))
            if progress:
                progress(index + 1)
        (folder / STORIES).write_text("\n".join(lines) + "\n", encoding="utf-8")
        about = {
            "schema": SCHEMA,
            "image_size": image_size,
            "stories": stories,
            "frames": stories * frames,
            "split": split,
            "seed": seed,
            "characters": [who.name for who in CAST],
            "vocabulary": vocabulary(),
            "references": reference_statistics(drawn),
        }
        _write_json(folder / ABOUT, about)
    except OSError as error:
        raise OutputError(f"`{folder}` cannot be written: {error.strerror}", "name another folder") from error
    return about


def character_card(who: CastMember) -> dict[str, Any]:
    """The words about a character, as in `characters/NAME.json` of data sets, checkpoints and bundles."""
    return {
        "name": who.name,
        "kind": who.kind,
        "pronoun": who.pronoun,
        "description": who.description,
        "aliases": list(who.aliases),
    }


def read_dataset(folder: Path) -> list[StoryEntry]:
    """Every story of a data set, checked: fields there, files there and inside the folder.

    Raises StoryError naming the line, and what it needs.
    """
    listing = folder / STORIES
    if not listing.is_file():
        raise StoryError(
            f"`{folder}` holds no `{STORIES}`", "storyv-lite data make -o FOLDER writes an example"
        )
    stories = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            frames = tuple(_frame(folder, frame) for frame in raw["frames"])
            stories.append(StoryEntry(str(raw.get("id", number)), raw.get("seed"), frames))
        except json.JSONDecodeError as error:
            raise StoryError(f"line {number} of `{listing}` is not JSON: {error.msg}", _HINT) from error
        except (KeyError, TypeError) as error:
            raise StoryError(f"line {number} of `{listing}` misses {error}", _HINT) from error
        except ValueError as error:
            raise StoryError(f"line {number} of `{listing}`: {error}", _HINT) from error
    return stories


_HINT = "docs/reference/dataset.md describes every field"


def _frame(folder: Path, raw: dict[str, Any]) -> FrameEntry:
    characters = []
    for entry in raw.get("characters", []):
        entry = {"name": entry} if isinstance(entry, str) else entry
        box = tuple(int(edge) for edge in entry["box"]) if entry.get("box") else None
        if box is not None and len(box) != 4:
            raise ValueError(f"box of `{entry['name']}` has {len(box)} numbers, 4 are needed")
        mask = _inside(folder, entry["mask"]) if entry.get("mask") else ""
        known = {key: entry[key] for key in ("action", "prop", "position") if key in entry}
        characters.append(CharacterEntry(entry["name"], mask, box, **known))
    caption = raw["caption"]
    return FrameEntry(
        _inside(folder, raw["image"]),
        caption,
        raw.get("original", caption),
        tuple(characters),
        raw.get("place", ""),
    )


def _inside(folder: Path, name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"`{name}` leads out of the folder")
    if not (folder / path).is_file():
        raise ValueError(f"`{name}` is not there")
    return name


def _draw(folder: Path, stem: str, frame: StoryFrame, image_size: int) -> FrameEntry:
    """Write one frame's picture and masks under `stem` and describe them."""
    picture: Picture = render(frame.scene, image_size)
    (folder / stem).parent.mkdir(exist_ok=True)
    _save(folder / f"{stem}.png", picture.image)
    characters = []
    for actor, mask, box in zip(frame.scene.actors, picture.masks, picture.boxes, strict=True):
        _save(folder / f"{stem}-{actor.name}.png", mask)
        x0, y0, x1, y1 = (int(edge) for edge in box)
        characters.append(
            CharacterEntry(
                actor.name,
                f"{stem}-{actor.name}.png",
                (x0, y0, x1, y1),
                actor.action,
                actor.prop,
                actor.position,
            )
        )
    return FrameEntry(f"{stem}.png", frame.reference, frame.original, tuple(characters), frame.scene.place)


def _save(path: Path, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    Image.fromarray(pixels).save(path)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
