"""Stories taken up again go on with the provider that drew them, or with the one that is asked for."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from storyv_lite.runtime.backends import open_backend, provider_asked, providers

Said = Callable[..., str]

QUICK = ("--steps", "1", "--seed", "3")
FILES = {"day.txt": "Milo is waving.\nHe is standing.\nLuna is sitting.\n"}
DRAWN_WITH = QUICK
pytestmark = pytest.mark.usefixtures("work")

LAST = Path("whole/frame-03.png")


def lose_the_last_frame(drawn_by: str = "CPUExecutionProvider") -> bytes:
    """Of a story that says it was drawn with this provider; what the frame was."""
    receipt = Path("whole/story.json")
    receipt.write_text(receipt.read_text().replace("CPUExecutionProvider", drawn_by))
    before = LAST.read_bytes()
    LAST.unlink()
    return before


def test_a_story_goes_on_with_the_provider_that_drew_it(done: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lose_the_last_frame()
    monkeypatch.setattr(providers, "problem", lambda provider: "")
    assert open_backend().provider == "CUDAExecutionProvider", "what `auto` would take now"
    assert "bytes may differ" not in done("continue", "whole")
    assert LAST.read_bytes() == before


def test_a_provider_that_drew_it_and_does_not_work_here_is_no_silent_other_one(
    done: Said, refused: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "problem", lambda provider: "" if provider == "cpu" else "no driver")
    lose_the_last_frame("CUDAExecutionProvider")
    for more in ((), ("--device", "cuda")):
        for command in (("continue", "whole"), ("redraw", "whole", "--frame", "1")):
            said = refused(5, *command, *more)
            assert "the story was drawn with `cuda`, which does not work here: " in said
            assert "`--provider cpu`: bytes may differ" in said
    said = done("continue", "whole", "--provider", "auto")
    assert "provider CUDAExecutionProvider then, CPUExecutionProvider now" in said


def test_another_device_is_another_provider_and_is_said(done: Said) -> None:
    before = lose_the_last_frame("tensorrt-rtx")
    assert "bytes may differ" in done("continue", "whole", "--device", "cpu")
    assert LAST.read_bytes() == before


def test_a_provider_asked_for_on_the_way_is_the_one_it_goes_on_with(
    done: Said, refused: Said, small_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    lose_the_last_frame("tensorrt-rtx")
    with small_disk(Path("whole/storyboard.png").stat().st_size - 100):
        assert "cannot be written" in refused(2, "continue", "whole", "--provider", "cpu")
    done("continue", "whole")


@pytest.mark.parametrize(
    ("made_with", "device", "asked"),
    [
        ("CUDAExecutionProvider", "auto", "cuda"),
        ("tensorrt", "cuda", "tensorrt"),
        ("tensorrt", "cpu", "auto"),
        ("CPUExecutionProvider", "cuda", "auto"),
        ("AVX512", "auto", "auto"),
    ],
)
def test_a_receipts_provider_is_asked_for_where_it_runs(made_with: str, device: str, asked: str) -> None:
    assert provider_asked(made_with, device) == asked
