"""Which stages may learn when, read from what `checkpoint.json` says of each."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from storyv_lite.checkpoint import is_behind, train_command
from storyv_lite.config import STAGES
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.modeling.checkpoints import record_stage, stage_record
from storyv_lite.presets import load_config
from storyv_lite.train import recipes
from storyv_lite.train.order import leaving_behind, refuse_disorder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder in which every stage had 4 steps."""
    for stage in STAGES:
        record_stage(tmp_path, stage, {"steps": 4, "max_train_steps": 4, "done": True})
    return tmp_path


def stopped(out: Path, stage: str, steps: int) -> None:
    record_stage(out, stage, {"steps": steps, "max_train_steps": 4, "done": False})


def saved(out: Path, component: str) -> None:
    (out / component).mkdir(exist_ok=True)
    (out / component / "model.safetensors").write_bytes(b"new")


def check(out: Path, stage: str, *settings: str) -> None:
    """Whether `stage` may be trained up to step 8."""
    config = load_config("micro", None, [f"{stage}.max_train_steps=8", *settings])
    refuse_disorder(config, out, [stage], [stage])


@pytest.mark.parametrize(
    ("stage", "later"), [("image_text", "char_ldm"), ("autoencoder", "char_ldm"), ("autoencoder", "judge")]
)
def test_a_stage_that_another_has_learned_on_learns_no_further(stage: str, later: str, out: Path) -> None:
    for other in ("char_ldm", "align", "judge"):
        if other != later:
            record_stage(out, other, {})
    with pytest.raises(ConfigError, match=f"`{stage}` would learn on, and `{later}` has") as fault:
        check(out, stage)
    assert "`-o`" in fault.value.hint and f"--set {stage}.max_train_steps=4" in fault.value.hint
    record_stage(out, later, {})
    check(out, stage)


@pytest.mark.parametrize(
    "setting", ["autoencoder.encoder_ratio=0", "autoencoder.encoder_ratio=0.5", "autoencoder.latents_of=old"]
)
def test_an_autoencoder_that_keeps_its_latents_learns_on(setting: str, out: Path) -> None:
    check(out, "autoencoder", setting)


@pytest.mark.parametrize(
    ("stage", "need"),
    [
        ("char_ldm", "autoencoder"),
        ("char_ldm", "image_text"),
        ("align", "char_ldm"),
        ("judge", "autoencoder"),
    ],
)
def test_a_stage_does_not_learn_on_one_that_is_not_finished(stage: str, need: str, out: Path) -> None:
    stopped(out, need, 1)
    with pytest.raises(BundleError, match=f"`{stage}` learns on what `{need}` makes") as fault:
        check(out, stage)
    wanted = f"storyv-lite train --preset micro -o {out} --stage {need} --set {stage}.max_train_steps=8"
    assert fault.value.hint == wanted


def test_a_refused_training_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finished"):
        recipes.run("micro", ["align"], "cpu", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_alignment_learns_beside_a_denoiser_that_learns_alone(out: Path) -> None:
    stopped(out, "char_ldm", 3)  # its encoders learn for 55 % of 4 steps
    check(out, "align")
    with pytest.raises(BundleError):
        check(out, "align", "align.diffusion_loss_scale=1")


@pytest.mark.parametrize(
    ("stage", "setting", "behind"),
    [
        ("story_lm", "story_lm.max_train_steps=8", True),
        ("char_ldm", "char_ldm.conditioning_ratio=0.9", True),
        ("char_ldm", "char_ldm.conditioning_ratio=0", False),
    ],
)
def test_alignment_has_to_go_on_behind_what_it_learned_on(
    stage: str, setting: str, behind: bool, out: Path
) -> None:
    check(out, stage, setting)
    (out / "state" / "align").mkdir(parents=True)
    with leaving_behind(load_config("micro", None, [f"{stage}.max_train_steps=8", setting]), out, stage):
        assert is_behind(stage_record(out, "align")) == behind
        saved(out, "language_model")
    assert is_behind(stage_record(out, "align")) == behind
    assert (out / "state" / "align").exists() != behind


@pytest.mark.parametrize("killed_before", [False, True])
def test_what_learned_on_a_stage_that_saved_nothing_is_what_it_was(killed_before: bool, out: Path) -> None:
    saved(out, "language_model")
    before, state = stage_record(out, "align"), out / "state" / "align"
    state.mkdir(parents=True)
    (state / "progress.json").write_text("exact")
    if killed_before:
        (out / "state" / ".align").mkdir()
    with (
        pytest.raises(KeyboardInterrupt),
        leaving_behind(load_config("micro", None, ["story_lm.max_train_steps=8"]), out, "story_lm"),
    ):
        assert not state.exists()
        raise KeyboardInterrupt
    assert stage_record(out, "align") == before
    assert (state / "progress.json").read_text() == "exact"
    assert [path.name for path in (out / "state").iterdir()] == ["align"]


def test_the_command_that_goes_on_is_accepted_and_asks_for_the_same_training(tmp_path: Path) -> None:
    settings = ["seed=7", "align.context=captions", "story_lm.max_train_steps=5", "align.learning_rate=1e-5"]
    config, out = load_config("micro", None, settings), tmp_path / "my model"
    recipes.describe(config, out)
    for stage in STAGES:
        record_stage(out, stage, {"steps": 5, "max_train_steps": 5, "done": stage != "align"})
    words = shlex.split(train_command(out, "align"))
    assert words[:8] == ["storyv-lite", "train", "--preset", "micro", "-o", str(out), "--stage", "align"]
    again = load_config("micro", None, words[9::2])
    assert again == replace(config, align=replace(config.align, max_train_steps=6))
    recipes.refuse_other_model(again, out)
    refuse_disorder(again, out, ["align"], ["align"])
