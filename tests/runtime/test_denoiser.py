"""Guidance, delayed conditioning and noise, on a denoiser simple enough to be followed by hand."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storyv_lite.runtime.denoiser import Conditioning, draw_latents, frame_generator
from storyv_lite.runtime.schedulers import NoiseSchedule, sampler_table

SHAPE = (2, 4, 4)


class Listening:
    """Answers with half the sample plus the mean of its conditioning, and writes down its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.timesteps: list[int] = []
        self.seen: list[float] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert inputs["sample"].dtype == inputs["encoder_hidden_states"].dtype == np.float32
        assert inputs["timestep"].dtype == np.int64 and inputs["timestep"].shape == (1,)
        states = inputs["encoder_hidden_states"].mean(axis=(1, 2))
        self.batches.append(len(states))
        self.timesteps.append(int(inputs["timestep"][0]))
        self.seen.append(float(states[-1]))
        return {"out_sample": 0.5 * inputs["sample"] + states[:, None, None, None]}

    def close(self) -> None: ...


def conditioning(merge_step: int = -1) -> Conditioning:
    null, text, story = (np.full((1, 3, 5), value, dtype=np.float32) for value in (0.0, 0.1, 0.2))
    return Conditioning(null, text, story, merge_step)


def draw(
    unet: Listening, guidance_scale: float = 3.0, seed: int = 1, name: str = "ddim", **options: Any
) -> Any:
    table = sampler_table(name, NoiseSchedule(), 6, "trailing")
    told = options.pop("conditioning", conditioning())
    return draw_latents(unet, table, told, guidance_scale, frame_generator(seed, 0), SHAPE, **options)


def test_guidance_in_one_batch_equals_guidance_in_two_passes() -> None:
    one, two = Listening(), Listening()
    np.testing.assert_allclose(draw(one), draw(two, batched=False), atol=1e-6)
    assert one.batches == [2] * 6
    assert two.batches == [1] * 12


def test_guidance_of_one_never_asks_for_the_empty_caption() -> None:
    unet = Listening()
    draw(unet, guidance_scale=1.0)
    assert unet.batches == [1] * 6
    assert unet.seen == pytest.approx([0.2] * 6)


def test_guidance_leads_away_from_the_empty_caption() -> None:
    plain, weak, strong = (draw(Listening(), scale) for scale in (1.0, 2.0, 4.0))
    null = conditioning().null
    empty = draw(Listening(), 1.0, conditioning=Conditioning(null, null, null, -1))
    assert np.abs(strong - empty).mean() > np.abs(weak - empty).mean() > np.abs(plain - empty).mean() > 0


@pytest.mark.parametrize(("merge_step", "text_only"), [(-1, 0), (0, 1), (2, 3), (99, 6)])
def test_evaluations_up_to_the_merge_step_see_the_plain_caption(merge_step: int, text_only: int) -> None:
    unet = Listening()
    draw(unet, conditioning=conditioning(merge_step))
    assert unet.seen == pytest.approx([0.1] * text_only + [0.2] * (6 - text_only))


def test_noise_depends_on_seed_and_frame_and_on_nothing_else() -> None:
    first = frame_generator(7, 3).standard_normal(5)
    assert np.array_equal(first, frame_generator(7, 3).standard_normal(5))
    assert not np.array_equal(first, frame_generator(7, 4).standard_normal(5))
    assert not np.array_equal(first, frame_generator(3, 7).standard_normal(5))


def test_noise_is_the_same_on_every_machine() -> None:
    """Written down once; a numpy that draws otherwise would draw other stories."""
    drawn = frame_generator(0, 0).standard_normal(4, dtype=np.float32)
    assert drawn.tolist() == [
        1.1176220178604126,
        -1.3871248960494995,
        -0.4265716075897217,
        -0.8035872578620911,
    ]


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmsolver++", "plms", "lcm"])
def test_every_sampler_draws_and_reports_each_evaluation(name: str) -> None:
    unet, told = Listening(), []
    latents = draw(unet, name=name, on_step=lambda step, steps: told.append((step, steps)))
    assert latents.shape == (1, *SHAPE)
    assert latents.dtype == np.float32
    assert np.isfinite(latents).all()
    evaluations = 7 if name == "plms" else 6
    assert told == [(i + 1, evaluations) for i in range(evaluations)]
    assert unet.timesteps == sorted(unet.timesteps, reverse=True)
    assert np.array_equal(latents, draw(Listening(), name=name))
    assert not np.array_equal(latents, draw(Listening(), name=name, seed=2))
