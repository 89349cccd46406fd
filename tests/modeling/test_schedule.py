"""The noise schedule of training."""

import pytest
import torch

from storyv_lite.config import UNetConfig
from storyv_lite.errors import ConfigError
from storyv_lite.modeling.schedule import build_scheduler, snr_weights, spread_timesteps, training_target


def test_noisy_velocities_count_fully_and_nearly_clean_ones_little() -> None:
    scheduler = build_scheduler(UNetConfig())
    weights = snr_weights(scheduler, torch.tensor([999, 900, 500, 100, 0]), snr_gamma=5.0)
    torch.testing.assert_close(weights[:3], torch.ones(3))
    assert 0 < weights[4] < weights[3] < 0.2


def test_noise_is_weighted_as_published() -> None:
    scheduler = build_scheduler(UNetConfig(prediction_type="epsilon"))
    kept = scheduler.alphas_cumprod[[100, 900]]
    snr = kept / (1 - kept)
    weights = snr_weights(scheduler, torch.tensor([100, 900]), snr_gamma=5.0)
    torch.testing.assert_close(weights, torch.stack([5 / snr[0], torch.tensor(1.0)]))


def test_a_shift_makes_the_noisiest_timesteps_likelier_by_that_factor() -> None:
    scheduler = build_scheduler(UNetConfig())
    even, shifted = spread_timesteps(scheduler, 10_000), spread_timesteps(scheduler, 10_000, shift=2.0)
    assert int((even >= 980).sum()) == pytest.approx(200, abs=2)
    assert int((shifted >= 980).sum()) == pytest.approx(392, abs=3)
    assert int((shifted < 500).sum()) == pytest.approx(3333, abs=2)
    assert int(even.max()) == int(shifted.max()) == 999


def test_a_schedule_that_asks_for_pictures_is_refused() -> None:
    scheduler = build_scheduler(UNetConfig(prediction_type="sample"))
    with pytest.raises(ConfigError, match="`sample`; epsilon or v_prediction"):
        training_target(scheduler, torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2), torch.tensor([5]))
