"""Our sampler tables against diffusers' schedulers, on random denoisers: what the agreement claim rests on.

Run `python -m storyv_lite.benchmarks.samplers` to print it as Markdown and, in the last line, as JSON. A
random denoiser is a fixed nonlinear function of sample and timestep, as large as a real prediction, so an
error in any row shows in the end.
Left out: Euler with velocity prediction, cosine schedule and trailing spacing. It starts at a sigma of
20,000, where diffusers, which steps in 32 bits, loses what it subtracts; a test compares it with DDIM.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import check_written, failed
from storyv_lite.benchmarks.machine import versions
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import StoryVError
from storyv_lite.optional import require
from storyv_lite.runtime.schedulers import SAMPLERS, SPACINGS, NoiseSchedule, sampler_table

Array = NDArray[np.float64]
Denoiser = Callable[[Array, int], Array]

SHAPE = (1, 4, 8, 8)
STEPS = (1, 2, 4, 12, 30)
SCHEDULES = ("scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")
TOLERANCE = 1e-4
LEFT_OUT = ("euler", "v_prediction", "squaredcos_cap_v2", "trailing")
COMMAND = "python -m storyv_lite.benchmarks.samplers"
DOCUMENT = Path("docs/reference/samplers.md")
PAGE = f"""# Samplers against diffusers

Each sampler of `storyv_lite/runtime/schedulers.py` is a table of coefficients. Here it runs beside diffusers'
scheduler of the same name, on a random denoiser and the same noise. A cell is the largest difference of any
element of the sample after any step, relative to the largest element where that is above 1; the worst of the
schedules {{schedules}} and the spacings {{spacings}} (LCM has a spacing of its own).
The bound is {{tolerance}}.

{{table}}

Left out: `euler` with `v_prediction`, `squaredcos_cap_v2` and `trailing`. It starts at a sigma of 20,000,
where diffusers, which steps in 32 bits, loses what it subtracts; a test compares it with `ddim`, whose step
it equals.

Versions: {{versions}}. Written again by:

```bash
{COMMAND} --write
```
"""


@dataclass(frozen=True)
class Agreement:
    """One comparison: the largest difference of any element at any step, relative to the largest sample."""

    sampler: str
    prediction_type: str
    beta_schedule: str
    timestep_spacing: str
    num_inference_steps: int
    difference: float


def random_denoiser(seed: int) -> Denoiser:
    """A smooth function of sample and timestep with values in about [-1, 1]."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((SHAPE[1], SHAPE[1]))
    shift = rng.standard_normal(SHAPE)

    def predict(sample: Array, timestep: int) -> Array:
        mixed = np.einsum("oc,bchw->bohw", mix, np.tanh(sample))
        return np.asarray(np.tanh(0.5 * mixed + np.sin(timestep / 137) * shift), dtype=np.float64)

    return predict


def compare(
    sampler: str,
    prediction_type: str,
    beta_schedule: str,
    timestep_spacing: str,
    num_inference_steps: int,
    seed: int = 0,
) -> Agreement:
    """Run ours and diffusers' from the same noise and compare the samples after every evaluation."""
    denoiser = random_denoiser(seed)
    rng = np.random.default_rng(seed + 1)
    noises = [rng.standard_normal(SHAPE) for _ in range(num_inference_steps + 2)]
    schedule = NoiseSchedule(
        beta_schedule=beta_schedule,
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        steps_offset=1 if timestep_spacing == "leading" and sampler != "lcm" else 0,
        set_alpha_to_one=sampler == "lcm",
    )
    ours = _ours(sampler, schedule, timestep_spacing, num_inference_steps, denoiser, noises)
    theirs = _diffusers(sampler, schedule, timestep_spacing, num_inference_steps, denoiser, noises)
    if len(ours) != len(theirs):
        raise ValueError(f"`{sampler}` takes {len(ours)} evaluations here and {len(theirs)} in diffusers")
    differences = [
        float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in zip(ours, theirs, strict=True)
    ]
    return Agreement(
        sampler, prediction_type, beta_schedule, timestep_spacing, num_inference_steps, max(differences)
    )


def _ours(
    sampler: str, schedule: NoiseSchedule, spacing: str, steps: int, denoiser: Denoiser, noises: list[Array]
) -> list[Array]:
    table = sampler_table(sampler, schedule, steps, spacing)
    samples, outputs = [noises[0] * table.initial_scale], []
    for row, timestep in enumerate(table.timesteps):
        outputs.append(denoiser(samples[row] * table.input_scale[row], int(timestep)))
        noise = noises[row + 1] if table.noise_weights[row] else None
        samples.append(table.step(row, samples, outputs, noise))
    return samples


def _diffusers(
    sampler: str, schedule: NoiseSchedule, spacing: str, steps: int, denoiser: Denoiser, noises: list[Array]
) -> list[Array]:
    torch = require("torch", extra="train")
    scheduler = _scheduler(sampler, schedule, spacing)
    # their formulas in 64 bits: near the end of the cosine schedule 32 bits are not enough to compare
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), dim=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # their np.array(tensor) under numpy 2
        scheduler.set_timesteps(steps)
    x = torch.from_numpy(noises[0]) * float(scheduler.init_noise_sigma)
    samples = [x.numpy()]
    for row, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, timestep)
        output = torch.from_numpy(denoiser(scaled.numpy(), int(timestep)))
        if sampler == "lcm":
            x = _lcm_step(scheduler, output, timestep, x, torch.from_numpy(noises[row + 1]))
        else:
            x = scheduler.step(output, timestep, x).prev_sample
        samples.append(x.numpy())
    return samples


def _lcm_step(scheduler: Any, output: Any, timestep: Any, sample: Any, noise: Any) -> Any:
    """One LCM step with the noise given: diffusers can only draw its own, so it is taken out and put back."""
    torch = require("torch", extra="train")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    step = scheduler.step(output, timestep, sample, generator=generator.manual_seed(0))
    following = scheduler.step_index
    if following == len(scheduler.timesteps):
        return step.prev_sample
    weight = (1 - scheduler.alphas_cumprod[scheduler.timesteps[following]]) ** 0.5
    return step.prev_sample + weight * (noise - drawn)


def _scheduler(sampler: str, schedule: NoiseSchedule, spacing: str) -> Any:
    diffusers = require("diffusers", extra="train")
    common: dict[str, Any] = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_schedule": schedule.beta_schedule,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": schedule.prediction_type,
    }
    spaced = {**common, "timestep_spacing": spacing, "steps_offset": schedule.steps_offset}
    last = {"set_alpha_to_one": schedule.set_alpha_to_one}
    match sampler:
        case "ddim":
            return diffusers.DDIMScheduler(**spaced, **last, clip_sample=False)
        case "euler":
            return diffusers.EulerDiscreteScheduler(**spaced)
        case "dpmsolver++":
            # ours keeps second order to the last but one row for any number of steps, as theirs does here
            return diffusers.DPMSolverMultistepScheduler(
                **spaced, algorithm_type="dpmsolver++", solver_order=2
            )
        case "plms":
            return diffusers.PNDMScheduler(**spaced, **last, skip_prk_steps=True)
        case _:
            return diffusers.LCMScheduler(**common, clip_sample=False)


def cases() -> list[tuple[str, str, str, str]]:
    """Sampler, prediction, schedule and spacing of every comparison; LCM has a spacing of its own."""
    every = product(SAMPLERS, PREDICTIONS, SCHEDULES, SPACINGS)
    return [case for case in every if case != LEFT_OUT and (case[0] != "lcm" or case[3] == SPACINGS[0])]


def agreements() -> list[Agreement]:
    """Every case at several numbers of steps."""
    return [compare(*case, steps) for case in cases() for steps in STEPS]


def markdown(found: list[Agreement]) -> str:
    """The page of the reference: one row per sampler and prediction, one column per number of steps."""
    worst: dict[tuple[str, str, int], float] = {}
    for one in found:
        key = one.sampler, one.prediction_type, one.num_inference_steps
        worst[key] = max(worst.get(key, 0.0), one.difference)
    table = [["sampler", "prediction", *(f"{steps} step{'s' * (steps > 1)}" for steps in STEPS)]]
    for sampler, prediction in dict.fromkeys((one.sampler, one.prediction_type) for one in found):
        cells = [f"{worst[sampler, prediction, steps]:.1e}" for steps in STEPS]
        table.append([f"`{sampler}`", f"`{prediction}`", *cells])
    schedules = " and ".join(f"`{name}`" for name in SCHEDULES)
    libraries = versions(("numpy", "torch", "diffusers"))
    return PAGE.format(
        table=markdown_table(table),
        schedules=schedules,
        spacings=" and ".join(f"`{name}`" for name in SPACINGS),
        tolerance=f"{TOLERANCE:g}",
        versions=", ".join(f"{name} {version}" for name, version in libraries.items()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare everything; the exit code is 1 when a difference is not below the tolerance."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Compare the samplers with diffusers'.")
    parser.add_argument("--write", type=Path, nargs="?", const=DOCUMENT, help=f"write the page [{DOCUMENT}]")
    write = parser.parse_args(arguments).write
    try:
        check_written(write)
        found = agreements()
    except StoryVError as fault:
        return failed(fault)
    page = markdown(found)
    print(page)
    if write:
        write.write_text(page, encoding="utf-8", newline="\n")
        print(f"wrote {write}")
    print(json.dumps({"schema": 1, "tolerance": TOLERANCE, "rows": [asdict(one) for one in found]}))
    return int(any(one.difference >= TOLERANCE for one in found))


if __name__ == "__main__":
    sys.exit(main())
