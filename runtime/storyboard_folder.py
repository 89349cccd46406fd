"""The folder a story is drawn into: frames as they come, then the sheet, the page and the receipt.

Knows files and the journal beside them, not how a frame comes about. Every file is there complete or not at
all, and a frame's file before its line in the journal: whatever ends the process, the next one goes on.
Pictures carry their seed, caption and bundle, and no time of day: the same story gives the same bytes.
"""

import hashlib
import io
import json
import os
import platform
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import tokenizers
from PIL import Image

from storyv_lite import __version__
from storyv_lite.bundle import PACKAGED
from storyv_lite.checkpoint import TORCH
from storyv_lite.errors import StoryVError
from storyv_lite.memory import format_bytes, resident_memory, take_peak
from storyv_lite.runtime.backends.base import Backend
from storyv_lite.runtime.context_size import stored_width
from storyv_lite.runtime.disk import link_file, write_file
from storyv_lite.runtime.images import Pixels, png
from storyv_lite.runtime.journal import JOURNAL, RECEIPT, Journal, Record
from storyv_lite.runtime.latents import SavedLatents
from storyv_lite.runtime.phases import FINISH, PHASE_OF
from storyv_lite.runtime.pipeline import Frame, OnProgress, Settings, StoryPipeline
from storyv_lite.runtime.plan import Budget, kept_plan, ways
from storyv_lite.runtime.storyboard import Panel, blank, page, sheet
from storyv_lite.runtime.takes import captions_at, overdrawn, run
from storyv_lite.story import Story

SCHEMA = 1
SHEET, PAGE = "storyboard.png", "index.html"
FRAME_FILE = re.compile(r"frame-(\d{2,})\.png")


def new_journal(story: Story, title: str, pipeline: StoryPipeline, settings: Settings) -> Journal:
    """The journal of a story of which nothing is drawn; `title` heads the sheet and the page."""
    bundle = {"name": pipeline.bundle.name, "sha256": pipeline.bundle.sha256}
    if pipeline.backend.name == TORCH:
        bundle["precision"] = pipeline.backend.precision
    return Journal(title, story, asdict(settings), bundle, made_with(pipeline))


def made_with(pipeline: StoryPipeline) -> dict[str, Any]:
    """What the bytes of a picture may depend on beside story, settings and bundle."""
    backend = pipeline.backend
    made = {"versions": _versions(backend), "threads": backend.threads, "provider": backend.provider}
    if pipeline.plan is not None:
        made |= {"plan": kept_plan(pipeline.plan), "ways": ways(pipeline.plan, pipeline.bundle)}
    return made | ({"tile": pipeline.tile} if pipeline.tile else {})


class StoryboardFolder:
    """Draws what the journal has pending. Whoever holds one has locked its folder."""

    def __init__(self, folder: Path, journal: Journal, pipeline: StoryPipeline) -> None:
        self.folder = folder
        self.journal = journal
        self.pipeline = pipeline
        self._latents = SavedLatents(folder, self._key)
        self._peaks: dict[str, int] = {}  # of this run: bytes at most, by the plan's phases

    def begin(self) -> None:
        """Put a new journal in place, then remove what an earlier story left here, and nothing else."""
        self.journal.write(self.folder)
        for name in (RECEIPT, SHEET, PAGE):
            (self.folder / name).unlink(missing_ok=True)
        self._latents.clear()
        self._settle_names()

    def go_on(self, retry: bool, resumed: bool) -> list[int]:
        """Take over what is here; returns the frames (from 0) that are lost. All drawn after them is, too.

        `retry` counts frames that failed among the lost ones; `resumed` says so in the receipt. Raises
        `OSError`.
        """
        self._settle_names()
        bad = {
            frame
            for frame, record in enumerate(self.journal.shown())
            if record is not None and (retry if "error" in record else self._hash(frame) != record["sha256"])
        }
        # A kill may come between a redrawn frame and its line: bad alone, such a frame is no loss.
        lost = sorted(bad) if bad - overdrawn(self.journal.pending) else []
        self.journal = self.journal.without(lost)
        if self.journal.pending:
            if resumed or lost:
                at = {"frame": self.journal.pending[0].frame + 1, "at": _now()}
                self.journal = replace(self.journal, resumed=(*self.journal.resumed, at))
            self.journal.write(self.folder)  # whole again, should its end be torn
        return lost

    def branch(self, source: Path) -> None:
        """Fill this empty folder with the frames of `source`, which take no room of their own.

        A frame that is not there any more is drawn again, as in `source` itself.
        """
        self.journal.write(self.folder)
        for frame, record in enumerate(self.journal.shown()):
            if record and "error" not in record and (source / self._name(frame)).exists():
                link_file(source / self._name(frame), self.folder / self._name(frame))

    def draw(self, told: OnProgress, keep_going: bool) -> Iterator[Record]:
        """Draw what is pending; yields the record of each take, written as it comes.

        A frame that fails is recorded. Then `FrameError` is raised; or, with `keep_going`, the next frames
        are drawn as if it were not there. Raises `OSError`, with nothing torn, when the disk is full.
        """
        while self.journal.pending:
            begin, order = len(self.journal.records), self.journal.story.order
            count, first = run(order, begin), order[begin].frame
            story = Story(captions_at(order, begin + count))
            settings = self.journal.settings
            frames = self.pipeline.draw(
                story,
                settings["seed"],
                settings["num_inference_steps"],
                settings["guidance_scale"],
                told,
                finished=self._pictures(first),
                latents=self._latents,
                context_size=settings["context_tokens"],
                kv_cache=settings["kv_cache"],
                spell_out=settings["spell_out"],
            )
            drawn = islice(frames, count)
            while len(self.journal.records) < begin + count:
                try:
                    frame = next(drawn)
                except OSError:  # a finished frame cannot be read: no fault of the one to draw
                    raise
                except Exception as fault:
                    yield self._failed(fault)
                    if not keep_going:
                        raise
                    break  # the generator has ended; the next one begins behind the frame that failed
                yield self._add(frame)

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write sheet, page and receipt, then remove the journal; `seconds` is what this run took.

        A branch gets a page that shows the frames beside it, and no sheet: it shall be small.
        """
        if self.pipeline.plan is not None and self.pipeline.plan.budget.limited:
            self.pipeline.close()
        take_peak()
        panels = [self._panel(frame) for frame in range(len(self.journal.story.captions))]
        names = None
        if self.journal.branch_of:
            names = [self._name(frame) for frame in range(len(panels))]
        else:
            board = io.BytesIO()
            sheet(self.journal.title, panels).save(board, "PNG")
            write_file(self.folder / SHEET, board.getvalue())
        receipt = self._receipt(seconds)
        content = page(self.journal.title, panels, self._details(receipt), names)
        write_file(self.folder / PAGE, content.encode())
        self._note_peaks({FINISH: take_peak() or 0})
        receipt |= {"memory_bytes": asdict(resident_memory()), "plan": self.measured_plan()}
        write_file(self.folder / RECEIPT, (json.dumps(receipt, indent=1, ensure_ascii=False) + "\n").encode())
        (self.folder / JOURNAL).unlink(missing_ok=True)
        return receipt

    @property
    def there(self) -> int:
        """How many frames are on the disk."""
        return sum(1 for record in self.journal.shown() if record and "error" not in record)

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        files = (RECEIPT, PAGE) if self.journal.branch_of else (RECEIPT, PAGE, SHEET)
        there = all((self.folder / name).is_file() for name in files)
        return there and not self.journal.pending and not (self.folder / JOURNAL).exists()

    def _add(self, frame: Frame) -> Record:
        chunks = {"caption": frame.caption, "seed": str(frame.seed), "bundle": self.pipeline.bundle.sha256}
        content = png(frame.image, chunks)
        write_file(self.folder / self._name(frame.index), content)
        record = {
            "frame": frame.index + 1,
            "seed": frame.seed,
            "sha256": hashlib.sha256(content).hexdigest(),
            "caption": frame.caption,
            "conditioning": frame.conditioning,
            "tokens_read": frame.tokens_read,
            "context_frames": [index + 1 for index in frame.context],
            "reduced_context": frame.reduced,
            "peak_bytes": frame.peaks,
            "dropped_frames": [index + 1 for index in frame.reading.dropped],
            "rebuilt_context": frame.reading.rebuilt,
            "tokens_in_cache": frame.reading.tokens_in_cache,
            **({"spelled_out": frame.reading.spelled} if frame.reading.spelled else {}),
            "timings_ms": {phase: round(value, 1) for phase, value in frame.timings_ms.items()},
        }
        self._note_peaks(frame.peaks)
        self.journal = self.journal.append(self.folder, record)
        self._latents.drop(frame.index)
        return record

    def _failed(self, fault: Exception) -> Record:
        take = self.journal.pending[0]
        reason = fault.message if isinstance(fault, StoryVError) else f"{type(fault).__name__}: {fault}"
        seed = self.journal.settings["seed"] if take.caption.seed is None else take.caption.seed
        record = {"frame": take.frame + 1, "seed": seed, "caption": take.caption.text, "error": reason}
        self.journal = self.journal.append(self.folder, record)
        return record

    def _key(self) -> str:
        """What decides the latents of the take at hand: everything before it, and itself."""
        journal, take = self.journal, self.journal.pending[0]
        before = [record.get("sha256", "") for record in journal.records]
        now = [take.frame, take.caption.text, take.caption.seed, before]
        made = {name: value for name, value in made_with(self.pipeline).items() if name != "plan"}
        known = [journal.bundle, journal.settings, made, *now]
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def _name(self, frame: int) -> str:
        digits = max(2, len(str(len(self.journal.story.captions))))
        return f"frame-{frame + 1:0{digits}}.png"

    def _settle_names(self) -> None:
        """Give frames the digits that the story's length asks for, and remove those of no frame of it."""
        count = len(self.journal.story.captions)
        here = {record["frame"] for record in self.journal.records}
        for file in self.folder.glob("frame-*.png"):
            match = FRAME_FILE.fullmatch(file.name)
            if match is None:
                continue
            number = int(match[1])
            if number <= count and file.name == self._name(number - 1):
                continue
            target = self.folder / self._name(number - 1)
            if number in here and number <= count and not target.exists():
                file.rename(target)
            else:
                file.unlink()

    def _hash(self, frame: int) -> str:
        try:
            return hashlib.sha256((self.folder / self._name(frame)).read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

    def _pictures(self, count: int) -> Iterator[Pixels | None]:
        """The pictures of the first `count` frames as they are now, one after the other."""
        for frame, record in enumerate(self.journal.shown()[:count]):
            if record is None or "error" in record:
                yield None
                continue
            with Image.open(self.folder / self._name(frame)) as file:
                yield np.asarray(file.convert("RGB"))

    def _panel(self, frame: int) -> Panel:
        record = self.journal.shown()[frame]
        if record and "error" not in record:
            png_file = (self.folder / self._name(frame)).read_bytes()
            return Panel(record["caption"], png_file, record.get("spelled_out", ""))
        size = self.pipeline.bundle.model.dimensions.image_size
        return Panel(f"(could not be drawn) {self.journal.story.captions[frame].text}", blank(size))

    def _receipt(self, seconds: float) -> dict[str, Any]:
        backend = self.pipeline.backend
        return {
            "schema": SCHEMA,
            "title": self.journal.title,
            "story": self.journal.story.as_json(),
            "settings": dict(self.journal.settings),
            "bundle": {**self.journal.bundle, "chosen": self.pipeline.reason},
            "command": self._command(),
            "created": _now(),
            "backend": {"name": backend.name, "precision": backend.precision},
            "device": {"device": backend.device, "provider": backend.provider, "chosen": backend.reason},
            "threads": backend.threads,
            "tile": self.pipeline.tile,
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": _versions(backend),
            "unknown_words": list(self.pipeline.unknown_words(self.journal.story)),
            "seconds": round(seconds, 2),
            "context": self._context(),
            "memory_bytes": asdict(resident_memory()),
            "plan": self.measured_plan(),
            "resumed": list(self.journal.resumed),
            "branch_of": self.journal.branch_of,
            "frames": [
                {**({} if "error" in record else {"file": self._name(record["frame"] - 1)}), **record}
                for record in self.journal.shown()
                if record is not None
            ],
        }

    def _note_peaks(self, peaks: Mapping[str, int]) -> None:
        for phase, peak in peaks.items():
            name = PHASE_OF.get(phase, phase)
            self._peaks[name] = max(self._peaks.get(name, 0), peak)

    def measured_plan(self) -> dict[str, Any] | None:
        """The plan, with what was measured beside what was planned; of the phases of this run."""
        plan = self.pipeline.plan
        if plan is None:
            return None
        whole = plan.as_dict()
        for phase in whole["phases"]:
            phase["measured_bytes"] = self._peaks.get(phase["name"]) or None
        return {**whole, "ways": ways(plan, self.pipeline.bundle)}

    def _context(self) -> dict[str, Any]:
        """What the language model may hold of a story, what it held, and how often it was read anew."""
        pipeline, settings = self.pipeline, Settings(**self.journal.settings)
        limits, backend = pipeline.limits(settings), pipeline.backend
        width = pipeline.kv_cache(settings.kv_cache)
        shown = [record for record in self.journal.shown() if record is not None]
        return {
            "limit_tokens": limits.tokens,
            "limit_frames": limits.frames,
            "kv_cache": stored_width(width, backend.precision, backend.device),
            "bytes_per_token": pipeline.model.token_bytes(width),
            "rebuilds": sum(record.get("rebuilt_context", False) for record in shown),
            "tokens_read": sum(record.get("tokens_read", 0) for record in shown),
            "tokens_in_cache": max((record.get("tokens_in_cache", 0) for record in shown), default=0),
        }

    def _command(self) -> str:
        """What draws the same story again, said in its folder."""
        settings = self.journal.settings
        bundle, backend = self.pipeline.bundle, self.pipeline.backend
        words = ["storyv-lite", "render", RECEIPT]
        if backend.name == TORCH:
            words += ["--checkpoint", self._seen_from_here(bundle.path), "--precision", backend.precision]
        else:
            ours = bundle.path == PACKAGED
            words += ["--bundle", PACKAGED.name if ours else self._seen_from_here(bundle.path)]
        words += ["--seed", str(settings["seed"]), "--steps", str(settings["num_inference_steps"])]
        words += ["--guidance", str(settings["guidance_scale"]), "--device", backend.device]
        words += ["--provider", backend.provider] if backend.name == "trt" else []
        words += ["--tile", str(self.pipeline.tile)] if self.pipeline.tile else []
        budget = self.pipeline.plan.budget if self.pipeline.plan else Budget()
        for flag, given in (("--ram", budget.ram), ("--vram", budget.vram)):
            words += [flag, f"{given}B"] if given else []
        for option, name in (("--context-size", "context_tokens"), ("--kv-cache", "kv_cache")):
            words += [] if settings[name] is None else [option, str(settings[name])]
        words += ["--spell-out"] if settings["spell_out"] else []
        return shlex.join(words)

    def _seen_from_here(self, path: Path) -> str:
        try:
            return os.path.relpath(path.resolve(), self.folder.resolve())
        except ValueError:  # another drive
            return str(path.resolve())

    def _details(self, receipt: dict[str, Any]) -> list[tuple[str, str]]:
        settings, peak = self.journal.settings, receipt["memory_bytes"]["peak"]
        steps, guidance = settings["num_inference_steps"], settings["guidance_scale"]
        details = [
            ("Model", f"{self.pipeline.bundle.name} ({self.pipeline.bundle.sha256[:12]})"),
            ("Seed", str(settings["seed"])),
            ("Sampler", f"{settings['sampler']}, {steps} steps, guidance {guidance:g}"),
            ("Time", f"{receipt['seconds']:.1f} s on {receipt['device']['device']}"),
            ("Memory", f"{format_bytes(peak)} at most" if peak else "not measured"),
            ("Drawn with", f"storyv-lite {__version__}"),
            ("Drawn on", receipt["created"][:10]),
            ("Draw it again", receipt["command"]),
        ]
        if receipt["unknown_words"]:
            details.append(("Unknown words", ", ".join(receipt["unknown_words"])))
        return details


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions(backend: Backend) -> dict[str, str]:
    return {
        "storyv-lite": __version__,
        "python": platform.python_version(),
        **backend.versions(),
        "tokenizers": tokenizers.__version__,
        "pillow": PIL.__version__,
    }
