"""What `storyv-lite train` says in the end."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from storyv_lite.config import STAGES
from storyv_lite.modeling.checkpoints import record_stage
from storyv_lite.presets import load_config
from storyv_lite.train import recipes
from storyv_lite.train.state import StageProgress


def test_a_finished_checkpoint_is_said_to_be_one_and_named_for_export(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    recipes.describe(load_config("micro"), tmp_path)
    for stage in STAGES:
        record_stage(tmp_path, stage, asdict(StageProgress(steps=4, max_train_steps=4, done=True)))
    code, out, _ = run("train", "--preset", "micro", "-o", tmp_path)
    assert code == 0
    assert out.splitlines() == [
        f"nothing to do: {tmp_path} is finished",
        f"next: storyv-lite export {tmp_path} --int4",
    ]
    assert (
        f"nothing to do: align in {tmp_path} is finished"
        in run("train", "--preset", "micro", "-o", tmp_path, "--stage", "align")[1]
    )


def test_settings_of_a_file_count_and_those_of_the_command_win(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    recipes.describe(load_config("micro", settings=["seed=7"]), tmp_path / "out")
    kept = tmp_path / "kept.toml"
    kept.write_text("seed = 7\n[judge]\nmax_train_steps = 3\n", encoding="utf-8")
    asked = ("train", "--preset", "micro", "-o", tmp_path / "out", "--config", kept, "--stage", "judge")
    record_stage(tmp_path / "out", "judge", asdict(StageProgress(steps=3, done=True)))
    assert run(*asked)[0] == 0
    code, _, err = run(*asked, "--set", "seed=8")
    assert code == 2 and "another `seed`" in err
    code, _, err = run(*asked[:-3], tmp_path / "none.toml")
    assert code == 2 and f"`{tmp_path / 'none.toml'}` is missing" in err
