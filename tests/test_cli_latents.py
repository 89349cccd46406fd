"""A frame whose decoding fails is not drawn again: its latents are on the disk."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.runtime.backends.ort import OrtSession
from storyv_lite.runtime.latents import SavedLatents

TOLD = "Milo is waving.\nHe is standing.\nLuna is sitting.\n"
QUICK = ("--steps", "2", "--seed", "3", "--device", "cpu")
FILES = {"day.txt": TOLD}
pytestmark = pytest.mark.usefixtures("work")

Said = Callable[..., str]


def pictures(folder: str) -> list[bytes]:
    return [file.read_bytes() for file in sorted(Path(folder).glob("frame-*.png"))]


class Watch:
    """Counts what runs; the decoder fails in its call number `fails`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fails = 0
        right = OrtSession.run

        def watched(session: OrtSession, inputs: Mapping[str, Any]) -> Any:
            self.calls.append(session._name)
            if session._name == Component.VAE_DECODER and self.calls.count(session._name) == self.fails:
                raise BackendError("`vae_decoder` failed: no memory", "storyv-lite doctor")
            return right(session, inputs)

        monkeypatch.setattr(OrtSession, "run", watched)


def test_a_failed_decode_costs_no_drawing(done: Said, refused: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    done("render", "day.txt", "-o", "whole", *QUICK)
    watch = Watch(monkeypatch)
    watch.fails = 2
    assert "frame 2 could not be drawn" in refused(5, "render", "day.txt", "-o", "day", *QUICK)
    assert Path("day/.latents-2").is_file() and not Path("day/.latents-1").exists()
    watch.calls.clear()
    watch.fails = 0
    done("continue", "day")
    assert watch.calls.count("unet") == 2  # two steps of frame 3, none of frame 2
    assert pictures("day") == pictures("whole") and not list(Path("day").glob(".*"))


def test_latents_of_another_seed_are_not_used(
    done: Said, refused: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    watch.fails = 1
    refused(5, "render", "day.txt", "-o", "day", *QUICK)
    journal = Path("day/journal.jsonl")
    head = json.loads(journal.read_text().splitlines()[0])
    head["settings"]["seed"] = 4
    journal.write_text(json.dumps(head) + "\n")
    watch.calls.clear()
    watch.fails = 0
    done("continue", "day")
    assert watch.calls.count("unet") == 6
    done("render", "day.txt", "-o", "whole", *QUICK, "--seed", "4")
    assert pictures("day") == pictures("whole")


def test_torn_latents_are_as_good_as_none(tmp_path: Path) -> None:
    saved = SavedLatents(tmp_path, lambda: "a key")
    latents = np.ones((1, 4, 2, 2), dtype=np.float32)
    saved.put(0, latents)
    found = saved.get(0)
    assert found is not None and np.array_equal(found, latents)
    file = tmp_path / ".latents-1"
    file.write_bytes(file.read_bytes()[:-3])
    assert saved.get(0) is None and saved.get(1) is None
    saved.drop(0)
    saved.drop(1)
    assert not list(tmp_path.glob(".*"))
