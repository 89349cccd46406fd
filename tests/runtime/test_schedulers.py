"""Sampler tables: equal to diffusers' schedulers, and to each other where mathematics says so."""

import numpy as np
import pytest

from storyv_lite.benchmarks.samplers import TOLERANCE, cases, compare, random_denoiser
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.runtime.schedulers import SAMPLERS, SPACINGS, NoiseSchedule, SamplerTable, sampler_table


@pytest.mark.parametrize("case", cases(), ids="-".join)
@pytest.mark.parametrize("num_inference_steps", [1, 2, 5, 12, 30])
def test_every_sampler_agrees_with_diffusers(
    case: tuple[str, str, str, str], num_inference_steps: int
) -> None:
    assert compare(*case, num_inference_steps).difference < TOLERANCE


def draw(table: SamplerTable) -> np.ndarray:
    denoiser = random_denoiser(3)
    samples = [np.random.default_rng(4).standard_normal((1, 4, 8, 8)) * table.initial_scale]
    outputs: list[np.ndarray] = []
    for row, timestep in enumerate(table.timesteps):
        outputs.append(denoiser(samples[row] * table.input_scale[row], int(timestep)))
        samples.append(table.step(row, samples, outputs))
    return samples[-1]


def test_euler_is_ddim_in_other_variables() -> None:
    """With the same timesteps both are the same first-order step, even from a sigma of 20,000."""
    schedule = NoiseSchedule()
    euler = sampler_table("euler", schedule, 20, "trailing")
    ddim = sampler_table("ddim", schedule, 20, "trailing")
    assert euler.timesteps.tolist() == ddim.timesteps.tolist()
    assert euler.initial_scale > 20_000
    np.testing.assert_allclose(draw(euler), draw(ddim), atol=1e-6)


def test_plms_runs_31_evaluations_for_30_steps_as_the_official_code_does() -> None:
    schedule = NoiseSchedule(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="epsilon",
        steps_offset=1, set_alpha_to_one=False,
    )  # fmt: skip
    timesteps = sampler_table("plms", schedule, 30).timesteps
    assert len(timesteps) == 31
    assert timesteps[:4].tolist() == [958, 925, 925, 892]
    assert timesteps[-2:].tolist() == [34, 1]


def test_only_lcm_adds_noise_and_not_after_its_last_evaluation() -> None:
    for name in SAMPLERS:
        noise = sampler_table(name, NoiseSchedule(), 4).noise_weights
        assert noise[-1] == 0
        assert noise[:-1].all() if name == "lcm" else not noise.any()


@pytest.mark.parametrize("steps", [0, -3, 1000, 10**9])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ConfigError, match="takes 1 to"):
        sampler_table("ddim", NoiseSchedule(), steps)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmsolver++", "plms"])
def test_any_number_of_steps_has_as_many_rows_and_stays_within_training(name: str, spacing: str) -> None:
    for steps in range(1, 1000):
        timesteps = sampler_table(name, NoiseSchedule(), steps, spacing).timesteps
        assert len(timesteps) == steps + (name == "plms" and steps > 1), steps
        assert 0 <= timesteps.min() and timesteps.max() < 1000, steps


def test_as_many_steps_as_an_offset_leaves_no_room_for_are_refused() -> None:
    offset = NoiseSchedule(steps_offset=1)
    with pytest.raises(ConfigError, match="takes 1 to 998"):
        sampler_table("dpmsolver++", offset, 999, "leading")
    assert sampler_table("dpmsolver++", offset, 998, "leading").timesteps.max() == 999


def test_a_bundle_s_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(BundleError, match="plms"):
        sampler_table("heun", NoiseSchedule(), 4)
    with pytest.raises(BundleError, match="trailing"):
        sampler_table("ddim", NoiseSchedule(), 4, "linspace")
    with pytest.raises(BundleError, match="v_prediction"):
        sampler_table("ddim", NoiseSchedule(prediction_type="sample"), 4)
    with pytest.raises(BundleError, match="`num_train_timesteps` is `'1000'`") as caught:
        NoiseSchedule.from_config({"num_train_timesteps": "1000"}, "epsilon")
    assert "export" in caught.value.hint
    with pytest.raises(BundleError, match="scaled_linear"):
        sampler_table("ddim", NoiseSchedule(beta_schedule="sigmoid"), 4)
