"""The folder a story is drawn into: frames as they come, then the sheet, the page and the receipt.

Knows files, not how a frame comes about. Every file is there complete or not at all. Pictures carry their
seed, caption and bundle, and no time of day: the same story gives the same bytes.
"""

import hashlib
import io
import json
import platform
import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import PIL
import tokenizers

from storyv_lite import __version__
from storyv_lite.checkpoint import TORCH
from storyv_lite.memory import format_bytes, resident_memory
from storyv_lite.runtime.images import png, write_file
from storyv_lite.runtime.pipeline import Frame, Settings, StoryPipeline
from storyv_lite.runtime.storyboard import Panel, page, sheet
from storyv_lite.story import Story

SCHEMA = 1
SHEET, PAGE, RECEIPT = "storyboard.png", "index.html", "story.json"


class StoryboardFolder:
    """Writes what `StoryPipeline.draw` yields; `title` heads the sheet and the page."""

    def __init__(
        self, folder: Path, story: Story, title: str, pipeline: StoryPipeline, settings: Settings
    ) -> None:
        self.folder = folder
        self.story = story
        self.title = title
        self.pipeline = pipeline
        self.settings = settings
        self.panels: list[Panel] = []
        self.records: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Remove what an earlier story left here, and nothing else."""
        for file in (
            *self.folder.glob("frame-*.png"),
            *(self.folder / name for name in (SHEET, PAGE, RECEIPT)),
        ):
            file.unlink(missing_ok=True)

    def add(self, frame: Frame) -> Path:
        """Write one frame and return its path."""
        digits = max(2, len(str(len(self.story.captions))))
        name = f"frame-{frame.index + 1:0{digits}}.png"
        chunks = {"caption": frame.caption, "seed": str(frame.seed), "bundle": self.pipeline.bundle.sha256}
        content = png(frame.image, chunks)
        write_file(self.folder / name, content)
        self.panels.append(Panel(frame.caption, content))
        self.records.append(
            {
                "file": name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "caption": frame.caption,
                "conditioning": frame.conditioning,
                "tokens_read": frame.tokens_read,
                "context_frames": [index + 1 for index in frame.context],
                "reduced_context": frame.reduced,
                "timings_ms": {phase: round(value, 1) for phase, value in frame.timings_ms.items()},
            }
        )
        return self.folder / name

    def finish(self, seconds: float) -> dict[str, Any]:
        """Write sheet, page and receipt; `seconds` is what everything took. Returns the receipt."""
        board = io.BytesIO()
        sheet(self.title, self.panels).save(board, "PNG")
        write_file(self.folder / SHEET, board.getvalue())
        receipt = self._receipt(seconds)
        write_file(self.folder / PAGE, page(self.title, self.panels, self._details(receipt)).encode())
        write_file(self.folder / RECEIPT, (json.dumps(receipt, indent=1, ensure_ascii=False) + "\n").encode())
        return receipt

    def _receipt(self, seconds: float) -> dict[str, Any]:
        bundle, backend = self.pipeline.bundle, self.pipeline.backend
        return {
            "schema": SCHEMA,
            "story": {"title": self.story.title, "captions": [one.text for one in self.story.captions]},
            "settings": asdict(self.settings),
            "bundle": {"name": bundle.name, "sha256": bundle.sha256, "chosen": self.pipeline.reason},
            "command": self._command(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "backend": {"name": backend.name, "precision": backend.precision},
            "device": {"device": backend.device, "provider": backend.provider, "chosen": backend.reason},
            "threads": backend.threads,
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": {
                "storyv-lite": __version__,
                "python": platform.python_version(),
                **backend.versions(),
                "tokenizers": tokenizers.__version__,
                "pillow": PIL.__version__,
            },
            "unknown_words": list(self.pipeline.unknown_words(self.story)),
            "seconds": round(seconds, 2),
            "memory_bytes": asdict(resident_memory()),
            "frames": self.records,
        }

    def _command(self) -> str:
        """What draws the same story again, beside the receipt."""
        settings = self.settings
        bundle, backend = self.pipeline.bundle, self.pipeline.backend
        words = ["storyv-lite", "render", RECEIPT]
        if backend.name == TORCH:
            words += ["--checkpoint", bundle.name, "--precision", backend.precision]
        else:
            words += ["--bundle", bundle.name]
        words += ["--seed", str(settings.seed), "--steps", str(settings.num_inference_steps)]
        words += ["--guidance", str(settings.guidance_scale), "--device", backend.device]
        return shlex.join(words)

    def _details(self, receipt: dict[str, Any]) -> list[tuple[str, str]]:
        settings, peak = self.settings, receipt["memory_bytes"]["peak"]
        steps = settings.num_inference_steps
        details = [
            ("Model", f"{self.pipeline.bundle.name} ({self.pipeline.bundle.sha256[:12]})"),
            ("Seed", str(settings.seed)),
            ("Sampler", f"{settings.sampler}, {steps} steps, guidance {settings.guidance_scale:g}"),
            ("Time", f"{receipt['seconds']:.1f} s on {receipt['device']['device']}"),
            ("Memory", f"{format_bytes(peak)} at most" if peak else "not measured"),
            ("Drawn with", f"storyv-lite {__version__}"),
            ("Drawn on", receipt["created"][:10]),
            ("Draw it again", receipt["command"]),
        ]
        if receipt["unknown_words"]:
            details.append(("Unknown words", ", ".join(receipt["unknown_words"])))
        return details
