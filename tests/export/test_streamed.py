"""Whole checkpoints exported one tensor at a time: bundles that draw, or nothing under the name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError, OutputError
from storyv_lite.export import streamed
from storyv_lite.export.streamed import stream_checkpoint
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.runtime.plan import Budget, kept_plan
from storyv_lite.runtime.planning import Asked, plan_again, plan_story
from storyv_lite.story import Caption, Story

INT4 = "int4,unet=int4,vae=int4,fusion=int4"
HALF = "fp16,unet=half,vae=half"


@pytest.mark.parametrize("scheme", [INT4, HALF])
def test_a_bundle_of_parts_draws_a_story(scheme: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", scheme, part_bytes=16_000)
    bundle = Bundle.open(out)
    assert len(bundle.variant(Component.UNET).parts) > 1 < len(bundle.variant(Component.LANGUAGE_MODEL).parts)
    pipeline = StoryPipeline(bundle, open_backend("cpu", threads=1))
    story = Story((Caption("Milo is waving in the meadow."), Caption("He is holding a balloon.")))
    frames = list(pipeline.draw(story, seed=0))
    assert len(frames) == 2
    budget, asked = Budget(10**11), Asked(num_inference_steps=4)  # whatever this process holds already
    plan = plan_story([out], pipeline.backend, story, budget, asked)[1]
    assert plan is not None and {Component.UNET, Component.LANGUAGE_MODEL} <= set(plan.choice.whole)
    for whole in (plan.choice.whole, ()):  # all parts stay, or each is loaded in every call
        kept = tuple(
            component for component in plan.choice.kept if whole or component not in plan.choice.whole
        )
        pipeline.obey(replace(plan, choice=replace(plan.choice, kept=kept, whole=whole)))
        again = list(pipeline.draw(story, seed=0))
        assert all(np.array_equal(one.image, two.image) for one, two in zip(frames, again, strict=True))
    plan_again(pipeline, story, pipeline.settings(), json.loads(json.dumps(kept_plan(plan))))
    assert pipeline.plan is not None and pipeline.plan.choice == plan.choice
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"], "nothing is left beside it"


def test_a_killed_export_leaves_no_bundle_and_is_taken_up_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    def killed(message: str) -> None:
        told.append(message)
        if message.startswith("unet"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", INT4, progress=killed)
    assert not (tmp_path / "bundle").exists()
    again: list[str] = []
    stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", INT4, progress=again.append)
    assert again[0] == "take up the export that was begun"
    assert not set(again) & {message for message in told if not message.startswith("unet")}
    whole = stream_checkpoint(tiny_checkpoint, tmp_path / "whole", INT4)
    for file in sorted(path for path in whole.rglob("*.onnx*")):
        other = tmp_path / "bundle" / file.relative_to(whole)
        assert other.read_bytes() == file.read_bytes(), file.name


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="free; export needs about"):
        stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", INT4)
    assert not list(tmp_path.rglob("*.onnx"))


def test_schemes_that_need_ranges_are_refused_without_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`unet`, `vae_decoder` as int8: activations are rounded") as fault:
        stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", "int4,fusion=int4")
    assert "--scheme unet=int4,vae_decoder=int4" in fault.value.hint


def test_a_bundle_that_is_there_is_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputError, match="exists"):
        stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", INT4)


def test_another_request_begins_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    work = tmp_path / ".bundle.streamed"
    (work / "records").mkdir(parents=True)
    (work / streamed.REQUEST).write_text("{}")
    (work / "records" / "unet-00-of-01.json").write_text("of another checkpoint")
    told: list[str] = []
    stream_checkpoint(tiny_checkpoint, tmp_path / "bundle", INT4, progress=told.append)
    assert "take up the export that was begun" not in told
