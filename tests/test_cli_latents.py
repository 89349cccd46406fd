"""A frame whose decoding fails is not drawn again: its latents are on the disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from storyv_lite.cli import app
from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.runtime.backends.ort import OrtSession
from storyv_lite.runtime.latents import SavedLatents

TOLD = "Milo is waving.\nHe is standing.\nLuna is sitting.\n"
QUICK = ("--steps", "2", "--seed", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("day.txt").write_text(TOLD)


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


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


def test_a_failed_decode_costs_no_drawing(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ("--bundle", tiny_bundle)
    assert run("render", "day.txt", "-o", "whole", *bundle, *QUICK)[0] == 0
    watch = Watch(monkeypatch)
    watch.fails = 2
    code, err = run("render", "day.txt", "-o", "day", *bundle, *QUICK)
    assert code == 5 and "frame 2 could not be drawn" in err
    assert Path("day/.latents-2").is_file() and not Path("day/.latents-1").exists()
    watch.calls.clear()
    watch.fails = 0
    assert run("continue", "day", *bundle)[0] == 0
    assert watch.calls.count("unet") == 2  # two steps of frame 3, none of frame 2
    assert pictures("day") == pictures("whole") and not list(Path("day").glob(".*"))


def test_latents_of_another_seed_are_not_used(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = ("--bundle", tiny_bundle)
    watch = Watch(monkeypatch)
    watch.fails = 1
    assert run("render", "day.txt", "-o", "day", *bundle, *QUICK)[0] == 5
    journal = Path("day/journal.jsonl")
    head = json.loads(journal.read_text().splitlines()[0])
    head["settings"]["seed"] = 4
    journal.write_text(json.dumps(head) + "\n")
    watch.calls.clear()
    watch.fails = 0
    assert run("continue", "day", *bundle)[0] == 0
    assert watch.calls.count("unet") == 6
    assert run("render", "day.txt", "-o", "whole", *bundle, *QUICK, "--seed", "4")[0] == 0
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
