"""The training loop: however a run is broken, it ends with the same weights as one that was not."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from storyv_lite.config import StageConfig
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.modeling.checkpoints import load_component, read_checkpoint, record_stage
from storyv_lite.train.loop import STOP, learning_rate, run_stage, step_rng
from storyv_lite.train.state import StageProgress

SETTINGS = StageConfig(
    max_train_steps=12,
    train_batch_size=2,
    lr_warmup_steps=3,
    ema_decay=0.9,
    log_steps=2,
    checkpointing_steps=4,
    sample_steps=6,
)


class Killed(Exception):
    """Stands for a process that ends without a word."""


def nothing(_: int) -> None:
    pass


def run(
    out: Path,
    settings: StageConfig = SETTINGS,
    before_step: Callable[[int], None] = nothing,
    minutes: float | None = None,
    width: int = 32,
    sample: Callable[[Path], None] | None = None,
    finish: Callable[[], None] | None = None,
    lost: Collection[int] = (),
) -> tuple[StageProgress, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = ToonAutoencoder(4, (width,), (1,), 4, 4)
    scale = nn.Linear(1, 1)

    def batches(step: int) -> Tensor:
        before_step(step)
        return torch.from_numpy(step_rng(1, "stage", step).normal(size=(2, 3, 8, 8))).float()

    def compute_loss(batch: Tensor, step: int) -> dict[str, Tensor]:
        posterior = model.encode(batch).latent_dist
        error = model.decode(posterior.sample()).sample.float() * scale.weight - batch  # sampling is random
        if step in lost:
            error = error * torch.inf
        return {"loss": error.square().mean(), "kl": posterior.kl().mean()}

    progress = run_stage(
        "stage",
        settings,
        {"autoencoder": model},
        batches,
        compute_loss,
        out,
        seed=1,
        minutes=minutes,
        extras={"scale": scale},
        sample=sample,
        finish=finish,
    )
    return progress, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return run(tmp_path_factory.mktemp("unbroken"))[1]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)


def at(wanted: int, act: Callable[[], None]) -> Callable[[int], None]:
    return lambda step: act() if step == wanted else None


def die() -> None:
    raise Killed


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(
    step: int, tmp_path: Path, unbroken: dict[str, Tensor]
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, before_step=at(step, die))
    begun: list[int] = []
    progress, weights = run(tmp_path, before_step=begun.append)
    assert begun[0] == step // 4 * 4
    assert progress.done and same(weights, unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops_after_the_step(
    number: signal.Signals, tmp_path: Path, unbroken: dict[str, Tensor]
) -> None:
    handler = signal.getsignal(number)
    progress, _ = run(tmp_path, before_step=at(5, lambda: os.kill(os.getpid(), number)))
    assert (progress.steps, progress.done) == (6, False)
    assert signal.getsignal(number) is handler
    begun: list[int] = []
    progress, weights = run(tmp_path, before_step=begun.append)
    assert begun[0] == 6 and progress.done and same(weights, unbroken)


def test_minutes_end_a_run_and_the_next_one_goes_on(tmp_path: Path, unbroken: dict[str, Tensor]) -> None:
    steps = []
    for _ in range(12):
        progress, weights = run(tmp_path, minutes=0)
        steps.append(progress.steps)
    assert steps == list(range(1, 13))
    assert progress.done and same(weights, unbroken)


def test_a_finished_stage_trains_no_further_and_may_be_prolonged(tmp_path: Path) -> None:
    _, weights = run(tmp_path)
    progress, again = run(tmp_path, before_step=lambda _: die())
    assert progress.done and same(again, weights)
    progress, longer = run(tmp_path, replace(SETTINGS, max_train_steps=14))
    assert progress.steps == 14 and not same(longer, weights)


@pytest.mark.parametrize("wanted", [6, 3])
def test_a_stage_that_has_the_steps_it_is_now_asked_for_is_finished_without_another(
    wanted: int, tmp_path: Path
) -> None:
    run(tmp_path, before_step=at(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    finished: list[bool] = []
    settings = replace(SETTINGS, max_train_steps=wanted)
    for _ in range(2):
        progress, _ = run(tmp_path, settings, lambda _: die(), finish=lambda: finished.append(True))
        assert (progress.steps, progress.done) == (6, True)
    assert finished == [True]
    assert read_checkpoint(tmp_path)["stages"]["stage"]["done"]


@pytest.mark.parametrize("left", [{}, {"steps": 8, "done": True}])
def test_a_run_killed_before_its_last_step_was_recorded_is_recorded_by_the_next(
    left: dict[str, object], tmp_path: Path
) -> None:
    _, weights = run(tmp_path)
    whole = read_checkpoint(tmp_path)["stages"]["stage"]
    record_stage(tmp_path, "stage", left)
    progress, again = run(tmp_path, before_step=lambda _: die())
    assert progress.done and same(again, weights)
    assert read_checkpoint(tmp_path)["stages"]["stage"] == whole


def test_without_its_state_a_run_goes_on_from_the_stored_weights(tmp_path: Path) -> None:
    run(tmp_path, before_step=at(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    shutil.rmtree(tmp_path / "state")
    begun: list[int] = []
    progress, _ = run(tmp_path, before_step=begun.append)
    assert begun[0] == 6 and progress.done


def test_a_warm_start_warms_up_again() -> None:
    settings = replace(SETTINGS, max_train_steps=1000, lr_warmup_steps=50)
    rates = [learning_rate(settings, step, resumed_at=500) for step in (500, 520, 560)]
    assert rates[0] < rates[1] < rates[2] == learning_rate(settings, 560)


def test_the_learning_rate_warms_up_and_decays_to_its_least() -> None:
    settings = replace(SETTINGS, max_train_steps=1000, lr_warmup_steps=10, lr_min_ratio=0.1)
    rates = [learning_rate(settings, step) / settings.learning_rate for step in (0, 9, 500, 1000)]
    assert rates == pytest.approx([0.1, 1.0, 0.55, 0.1], abs=1e-3)


def test_stored_components_hold_the_averaged_weights_that_are_returned(tmp_path: Path) -> None:
    _, weights = run(tmp_path)
    assert same(weights, load_component(tmp_path / "autoencoder").state_dict())


def test_progress_metrics_and_samples_are_written(tmp_path: Path) -> None:
    run(tmp_path, sample=lambda path: path.touch())
    record = read_checkpoint(tmp_path)["stages"]["stage"]
    assert (record["steps"], record["samples"], record["done"]) == (12, 24, True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert {"stage", "loss", "kl", "lr", "samples_per_second", "seconds"} <= lines[0].keys()
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["stage-000006.png", "stage-000012.png"]


def test_sampling_does_not_change_what_is_learned(tmp_path: Path, unbroken: dict[str, Tensor]) -> None:
    assert same(run(tmp_path, sample=lambda _: torch.rand(3))[1], unbroken)  # type: ignore[arg-type]


def test_a_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(BundleError, match="another shape") as caught:
        run(tmp_path, width=64)
    assert "from the stored weights without it" in caught.value.hint


def test_a_signal_during_the_last_save_is_told_to_who_runs_the_stages(tmp_path: Path) -> None:
    progress, _ = run(
        tmp_path, sample=lambda path: os.kill(os.getpid(), signal.SIGTERM) if "12" in path.name else None
    )
    assert progress.done and STOP.is_set()


@pytest.mark.parametrize(("first", "kept", "between"), [(5, 4, "6 and 8"), (7, 8, "8 and 10")])
def test_a_training_that_diverges_stops_and_what_was_saved_before_is_kept(
    tmp_path: Path, first: int, kept: int, between: str
) -> None:
    with pytest.raises(ConfigError, match=f"`stage` diverged between steps {between}: its loss is") as fault:
        run(tmp_path, lost=range(first, 12))
    assert "--set stage.learning_rate=0.0005" in fault.value.hint
    assert read_checkpoint(tmp_path)["stages"]["stage"]["steps"] == kept
    healed, _ = run(tmp_path)
    assert healed.done
    weights = load_component(tmp_path / "autoencoder").state_dict().values()
    assert all(weight.isfinite().all() for weight in weights)


def test_a_step_whose_gradients_are_no_numbers_is_left_out_and_told(tmp_path: Path) -> None:
    progress, weights = run(tmp_path, lost=[5, 8])
    assert progress.done and all(weight.isfinite().all() for weight in weights.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 0, 1, 0]
    assert [line["loss"] is None for line in lines] == [False, False, True, False, False, False]


def test_what_a_left_out_step_learns_is_nothing(tmp_path: Path) -> None:
    settings = replace(SETTINGS, max_train_steps=5, ema_decay=0.0, log_steps=5, checkpointing_steps=9)
    settings = replace(settings, lr_min_ratio=1.0)  # so that all steps learn alike, however many there are
    learned = run(tmp_path / "left out", settings, lost=[4])[1]
    before = run(tmp_path / "before", replace(settings, max_train_steps=4))[1]
    assert not same(run(tmp_path / "whole", settings)[1], learned)
    assert same(learned, before)
