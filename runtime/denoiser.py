"""Drawing: noise becomes latents, guided by conditioning.

Knows guidance, delayed conditioning (specification A.6, D.3) and where noise comes from; the sampler is a
table (`schedulers`), the UNet a session.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storyv_lite.runtime.backends.base import Session
from storyv_lite.runtime.schedulers import SamplerTable

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Conditioning:
    """What one frame is drawn from, each (1, text_tokens, cross_attention_dim).

    Evaluations up to and including `merge_step` see the plain caption, the later ones the story; -1 is the
    story from the first evaluation on.
    """

    null: Floats  # the empty caption
    text: Floats  # the plain caption
    story: Floats  # the mapper's answer, or the caption fused with portraits
    merge_step: int

    def at(self, evaluation: int) -> Floats:
        return self.text if evaluation <= self.merge_step else self.story


def frame_generator(seed: int, frame: int) -> np.random.Generator:
    """The noise of one frame: the same for every backend, and for a frame drawn again alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, frame])))


def draw_latents(
    unet: Session,
    table: SamplerTable,
    conditioning: Conditioning,
    guidance_scale: float,
    generator: np.random.Generator,
    shape: tuple[int, int, int],
    batched: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> Floats:
    """Latents (1, *shape) after all evaluations of `table`.

    With a guidance scale above 1 every evaluation sees the empty caption too: as a batch of two, or, when not
    `batched`, in two passes with half the memory. `on_step(done, all)` is called after each evaluation.
    """

    def noise() -> NDArray[np.float64]:
        return generator.standard_normal((1, *shape), dtype=np.float32).astype(np.float64)

    samples, outputs = [noise() * table.initial_scale], []
    for row in range(len(table)):
        sample = (samples[row] * table.input_scale[row]).astype(np.float32)
        timestep = table.timesteps[row : row + 1]
        wanted = conditioning.at(row)
        if guidance_scale <= 1:
            output = _predict(unet, sample, timestep, wanted)
        elif batched:
            both = _predict(
                unet, np.repeat(sample, 2, 0), timestep, np.concatenate([conditioning.null, wanted])
            )
            output = _guide(both[:1], both[1:], guidance_scale)
        else:
            without = _predict(unet, sample, timestep, conditioning.null)
            output = _guide(without, _predict(unet, sample, timestep, wanted), guidance_scale)
        outputs.append(output.astype(np.float64))
        fresh = noise() if table.noise_weights[row] else None
        samples.append(table.step(row, samples, outputs, fresh))
        if on_step is not None:
            on_step(row + 1, len(table))
    return samples[-1].astype(np.float32)


def _predict(unet: Session, sample: Floats, timestep: NDArray[np.int64], states: Floats) -> Floats:
    answer = unet.run({"sample": sample, "timestep": timestep, "encoder_hidden_states": states})
    return answer["out_sample"]


def _guide(without: Floats, wanted: Floats, guidance_scale: float) -> Floats:
    return without + np.float32(guidance_scale) * (wanted - without)
