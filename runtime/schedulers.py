"""Samplers as tables of linear multistep coefficients, in float64.

Every sampler here is linear in what it has seen: the next sample is a weighted sum of the last samples, the
last raw model outputs and, for LCM, fresh noise. So a sampler is a table with one row per evaluation, and
drawing is one short loop for all of them. Rows follow diffusers' schedulers, quirks included: PLMS evaluates
its second timestep twice (30 steps are 31 evaluations), DPM-Solver++ ends with a first-order step.
Knows schedules and coefficients; not the UNet, not guidance, not where noise comes from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.manifest import read_record

SAMPLERS = ("ddim", "euler", "dpmsolver++", "plms", "lcm")
SPACINGS = ("leading", "trailing")
_MADE_ANEW = "storyv-lite export, which makes the bundle anew"
HISTORY = 5  # columns: a PLMS row reaches four evaluations back

Array = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseSchedule:
    """How training added noise; the fields and defaults are those of diffusers' scheduler configuration."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "squaredcos_cap_v2"  # "linear" | "scaled_linear" | "squaredcos_cap_v2"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: str = "v_prediction"  # "epsilon" | "v_prediction"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    original_inference_steps: int = 50  # LCM: the steps its teacher took

    @classmethod
    def from_config(cls, config: Mapping[str, Any], prediction_type: str) -> "NoiseSchedule":
        """Read the manifest's `model.scheduler`; keys that no sampler here needs are left out.

        Raises `BundleError` for values of another type.
        """
        try:
            return read_record(cls, {**config, "prediction_type": prediction_type})
        except ValueError as fault:
            raise BundleError(f"the scheduler of the model: {fault}", _MADE_ANEW) from fault

    def alphas_cumprod(self) -> Array:
        """Share of the signal's variance left at each training timestep, (num_train_timesteps,)."""
        steps = self.num_train_timesteps
        match self.beta_schedule:
            case "linear":
                betas = np.linspace(self.beta_start, self.beta_end, steps)
            case "scaled_linear":
                betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
            case "squaredcos_cap_v2":
                bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
                betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
            case other:
                raise BundleError(
                    f"`beta_schedule` is `{other}`; linear, scaled_linear or squaredcos_cap_v2 is needed",
                    _MADE_ANEW,
                )
        return np.asarray(np.cumprod(1 - betas), dtype=np.float64)


@dataclass(frozen=True)
class SamplerTable:
    """One row per UNet evaluation; column j of a weight table belongs to what row i - j saw."""

    timesteps: NDArray[np.int64]  # (N,)
    input_scale: Array  # (N,) the UNet is given sample * input_scale
    sample_weights: Array  # (N, HISTORY)
    output_weights: Array  # (N, HISTORY)
    noise_weights: Array  # (N,) zero but for LCM
    initial_scale: float = 1.0  # the first sample is unit noise times this

    def __len__(self) -> int:
        return len(self.timesteps)

    def step(
        self, row: int, samples: Sequence[Array], outputs: Sequence[Array], noise: Array | None = None
    ) -> Array:
        """The next sample, from all samples and raw model outputs of rows 0..`row` (any equal shapes)."""
        result = np.zeros_like(samples[row])
        for back in range(min(row + 1, HISTORY)):
            result += self.sample_weights[row, back] * samples[row - back]
            result += self.output_weights[row, back] * outputs[row - back]
        if noise is not None:
            result += self.noise_weights[row] * noise
        return result


def sampler_table(
    name: str, schedule: NoiseSchedule, num_inference_steps: int, timestep_spacing: str = "leading"
) -> SamplerTable:
    """The table of one sampler. LCM has its own spacing.

    Raises `ConfigError` for a number of steps, `BundleError` for what the bundle says of the model.
    """
    if schedule.prediction_type not in ("epsilon", "v_prediction"):
        raise BundleError(
            f"`prediction_type` is `{schedule.prediction_type}`; epsilon or v_prediction is needed",
            _MADE_ANEW,
        )
    if timestep_spacing not in SPACINGS:
        raise BundleError(
            f"`timestep_spacing` is `{timestep_spacing}`; one of {', '.join(SPACINGS)} is needed", _MADE_ANEW
        )
    limit = schedule.original_inference_steps if name == "lcm" else schedule.num_train_timesteps - 1
    if name == "dpmsolver++" and timestep_spacing == "leading":
        limit -= schedule.steps_offset
    if not 1 <= num_inference_steps <= limit:
        raise ConfigError(
            f"{num_inference_steps} steps were asked for; `{name}` takes 1 to {limit}",
            hint="give another number with `--steps`",
        )
    match name:
        case "ddim":
            return _ddim(schedule, num_inference_steps, timestep_spacing)
        case "euler":
            return _euler(schedule, num_inference_steps, timestep_spacing)
        case "dpmsolver++":
            return _dpmsolver(schedule, num_inference_steps, timestep_spacing)
        case "plms":
            return _plms(schedule, num_inference_steps, timestep_spacing)
        case "lcm":
            return _lcm(schedule, num_inference_steps)
    raise BundleError(f"`{name}` is no sampler; one of {', '.join(SAMPLERS)} is needed", _MADE_ANEW)


@dataclass
class _Rows:
    """Collects rows; `terms` maps how many rows back to a (sample, output) pair of weights."""

    timesteps: list[int] = field(default_factory=list)
    input_scale: list[float] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def add(
        self, timestep: int, terms: Mapping[int, tuple[float, float]], scale: float = 1.0, noise: float = 0.0
    ) -> None:
        row = np.zeros((HISTORY, 2))
        for back, pair in terms.items():
            row[back] += pair
        self.timesteps.append(timestep)
        self.input_scale.append(scale)
        self.weights.append(row)
        self.noise.append(noise)

    def table(self, initial_scale: float = 1.0) -> SamplerTable:
        weights = np.stack(self.weights)
        steps = np.asarray(self.timesteps, dtype=np.int64)
        scales = np.asarray(self.input_scale)
        return SamplerTable(
            steps, scales, weights[..., 0], weights[..., 1], np.asarray(self.noise), initial_scale
        )


def _timesteps(schedule: NoiseSchedule, steps: int, spacing: str, divisor: int) -> list[int]:
    """Descending timesteps; leading spacing divides training by `divisor` (DPM-Solver++ by one more)."""
    train = schedule.num_train_timesteps
    if spacing == "trailing":
        descending = np.arange(train, 0, -train / steps)[:steps]  # rounding gives some numbers one too many
        return [int(t) - 1 for t in np.round(descending)]
    first = divisor - steps  # DPM-Solver++ leaves out the lowest
    return [(first + i) * (train // divisor) + schedule.steps_offset for i in range(steps)][::-1]


def _predictions(schedule: NoiseSchedule, alpha: float, sigma: float) -> tuple[Array, Array]:
    """The predicted clean sample and the predicted noise, each as (sample, output) weights."""
    if schedule.prediction_type == "epsilon":
        return np.array([1 / alpha, -sigma / alpha]), np.array([0.0, 1.0])
    return np.array([alpha, -sigma]), np.array([sigma, alpha])


def _pair(weights: Array) -> tuple[float, float]:
    return float(weights[0]), float(weights[1])


def _ddim(schedule: NoiseSchedule, steps: int, spacing: str) -> SamplerTable:
    bar = schedule.alphas_cumprod()
    rows = _Rows()
    for t in _timesteps(schedule, steps, spacing, steps):
        clean, noise = _predictions(schedule, bar[t] ** 0.5, (1 - bar[t]) ** 0.5)
        before = _bar_before(schedule, bar, t - schedule.num_train_timesteps // steps)
        rows.add(t, {0: _pair(before**0.5 * clean + (1 - before) ** 0.5 * noise)})
    return rows.table()


def _bar_before(schedule: NoiseSchedule, bar: Array, t: int) -> float:
    """Signal left at `t`; before the first training timestep, whatever the schedule says remains."""
    return float(bar[t]) if t >= 0 else 1.0 if schedule.set_alpha_to_one else float(bar[0])


def _euler(schedule: NoiseSchedule, steps: int, spacing: str) -> SamplerTable:
    bar = schedule.alphas_cumprod()
    timesteps = _timesteps(schedule, steps, spacing, steps)
    sigmas = [((1 - bar[t]) / bar[t]) ** 0.5 for t in timesteps] + [0.0]
    rows = _Rows()
    for t, sigma, following in zip(timesteps, sigmas, sigmas[1:], strict=False):
        if schedule.prediction_type == "epsilon":
            clean = np.array([1.0, -sigma])
        else:
            clean = np.array([1 / (sigma**2 + 1), -sigma / (sigma**2 + 1) ** 0.5])
        direction = (np.array([1.0, 0.0]) - clean) / sigma
        step = np.array([1.0, 0.0]) + (following - sigma) * direction
        rows.add(t, {0: _pair(step)}, scale=(sigma**2 + 1) ** -0.5)
    return rows.table(sigmas[0] if spacing == "trailing" else (sigmas[0] ** 2 + 1) ** 0.5)


def _dpmsolver(schedule: NoiseSchedule, steps: int, spacing: str) -> SamplerTable:
    """DPM-Solver++ 2M, midpoint (arXiv 2211.01095, algorithm 2), ending at zero noise."""
    bar = schedule.alphas_cumprod()
    timesteps = _timesteps(schedule, steps, spacing, steps + 1)
    alphas = [bar[t] ** 0.5 for t in timesteps] + [1.0]
    sigmas = [(1 - bar[t]) ** 0.5 for t in timesteps] + [0.0]
    rows = _Rows()
    for i, t in enumerate(timesteps):
        clean, _ = _predictions(schedule, alphas[i], sigmas[i])
        keep = np.array([sigmas[i + 1] / sigmas[i], 0.0])
        if i + 1 == len(timesteps):  # no noise is left: the clean sample itself
            rows.add(t, {0: _pair(keep + alphas[i + 1] * clean)})
            continue
        half_step = np.log(alphas[i + 1] / sigmas[i + 1]) - np.log(alphas[i] / sigmas[i])
        weight = -alphas[i + 1] * np.expm1(-half_step)
        if i == 0:
            rows.add(t, {0: _pair(keep + weight * clean)})
            continue
        last_half_step = np.log(alphas[i] / sigmas[i]) - np.log(alphas[i - 1] / sigmas[i - 1])
        slope = 0.5 * weight * half_step / last_half_step
        clean_before, _ = _predictions(schedule, alphas[i - 1], sigmas[i - 1])
        rows.add(t, {0: _pair(keep + (weight + slope) * clean), 1: _pair(-slope * clean_before)})
    return rows.table()


_PLMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _plms(schedule: NoiseSchedule, steps: int, spacing: str) -> SamplerTable:
    """Pseudo linear multistep (arXiv 2202.09778) without Runge-Kutta steps, as the official code runs it.

    Row 1 evaluates its timestep for the first time, averages with row 0 and starts again from the first
    sample; its own output is not remembered. Predictions of velocity are combined before they become noise.
    """
    bar = schedule.alphas_cumprod()
    stride = schedule.num_train_timesteps // steps
    timesteps = _timesteps(schedule, steps, spacing, steps)
    timesteps = timesteps[:1] + timesteps[1:2] + timesteps[1:]
    rows = _Rows()
    remembered: list[int] = []  # rows whose outputs the multistep formula uses, newest first
    for i, t in enumerate(timesteps):
        if i == 1:
            keep, use = _pndm(schedule, bar, t + stride, t)
            rows.add(t, {0: (0.0, use / 2), 1: (keep, use / 2)})
            continue
        remembered = [i, *remembered][:4]
        keep, use = _pndm(schedule, bar, t, t - stride)
        terms = {
            i - seen: (keep if seen == i else 0.0, use * weight)
            for seen, weight in zip(remembered, _PLMS[len(remembered) - 1], strict=True)
        }
        rows.add(t, terms)
    return rows.table()


def _pndm(schedule: NoiseSchedule, bar: Array, t: int, before: int) -> tuple[float, float]:
    """Weights of sample and (combined) output of one step from `t` to `before`: formula (9) of the paper."""
    now, then = float(bar[t]), _bar_before(schedule, bar, before)
    sample = (then / now) ** 0.5
    noise = -(then - now) / (now * (1 - then) ** 0.5 + (now * (1 - now) * then) ** 0.5)
    if schedule.prediction_type == "epsilon":
        return sample, noise
    return sample + noise * (1 - now) ** 0.5, noise * now**0.5


def _lcm(schedule: NoiseSchedule, steps: int) -> SamplerTable:
    """Latent consistency (arXiv 2310.04378): jump to the clean sample, add noise again, but for the last."""
    bar = schedule.alphas_cumprod()
    teacher = schedule.original_inference_steps
    stride = schedule.num_train_timesteps // teacher
    chosen = np.floor(np.linspace(0, teacher, num=steps, endpoint=False)).astype(np.int64)
    timesteps = [int(teacher - i) * stride - 1 for i in chosen]
    rows = _Rows()
    for i, t in enumerate(timesteps):
        clean, _ = _predictions(schedule, bar[t] ** 0.5, (1 - bar[t]) ** 0.5)
        scaled = t * 10.0
        keep = 0.25 / (scaled**2 + 0.25)
        jump = scaled / (scaled**2 + 0.25) ** 0.5 * clean + np.array([keep, 0.0])
        if i + 1 == len(timesteps):
            rows.add(t, {0: _pair(jump)})
            continue
        following = float(bar[timesteps[i + 1]])
        rows.add(t, {0: _pair(following**0.5 * jump)}, noise=(1 - following) ** 0.5)
    return rows.table()
