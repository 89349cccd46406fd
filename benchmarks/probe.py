"""What one device computes from given inputs, kept in a file to be compared with another device's.

Run by `gpu` as a process of its own, the request as JSON on stdin, the answer in the last line of stdout.
With given pictures nothing a device computes reaches the next frame, so differences do not add up; a story
drawn by itself shows what becomes of them when they do.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from storyv_lite.benchmarks.child import answer
from storyv_lite.benchmarks.context import Walk
from storyv_lite.benchmarks.machine import query_gpus
from storyv_lite.components import Component
from storyv_lite.memory import device_memory


@dataclass(frozen=True)
class ProbeRequest:
    """`file` receives the tensors."""

    bundle: str
    captions: tuple[str, ...]
    device: str
    file: str
    launched: float | None = None


def probe(request: ProbeRequest) -> dict[str, Any]:
    """Write `states` (F, image_tokens, hidden), `latents` (F, channels, size, size), and the pictures
    (F, H, W, 3) made from them, `given`, and of the story drawn by itself, `drawn`."""
    from storyv_lite.runtime.denoiser import Conditioning, draw_latents, frame_generator
    from storyv_lite.runtime.pipeline import StoryPipeline
    from storyv_lite.runtime.schedulers import NoiseSchedule, sampler_table
    from storyv_lite.story import Caption, Story

    pipeline = StoryPipeline.from_bundle(Path(request.bundle), request.device)
    model, settings = pipeline.model, pipeline.settings()
    facts = pipeline.bundle.model
    dims = facts.dimensions
    schedule = NoiseSchedule.from_config(facts.scheduler, facts.prediction_type)
    table = sampler_table(settings.sampler, schedule, settings.num_inference_steps, settings.timestep_spacing)
    unet = model.session(Component.UNET)
    shape = (dims.latent_channels, dims.latent_size, dims.latent_size)
    states = [found for found, _ in Walk(model, request.captions).cached()]
    latents = []
    for index, image_states in enumerate(states):
        null = model.null_states
        conditioning = Conditioning(null, null, model.map(image_states), merge_step=-1)
        generator = frame_generator(settings.seed, index)
        latents.append(draw_latents(unet, table, conditioning, settings.guidance_scale, generator, shape))
    given = [model.decode(one) for one in latents]
    drawn = [frame.image for frame in pipeline.draw(Story(tuple(map(Caption, request.captions))))]
    tensors = {"states": states, "latents": [one[0] for one in latents], "given": given, "drawn": drawn}
    save_file({name: np.ascontiguousarray(np.stack(parts)) for name, parts in tensors.items()}, request.file)
    cuda = pipeline.backend.device == "cuda"
    return {
        "device": pipeline.backend.device,
        "provider": pipeline.backend.provider,
        "versions": pipeline.backend.versions(),
        "process_device_bytes": device_memory() if cuda else None,
        "whole_device_bytes": used_device_bytes() if cuda else None,
    }


def used_device_bytes() -> int | None:
    """Bytes in use on the first GPU by everybody; None where there is none."""
    used = query_gpus("memory.used")
    return int(used[0].split()[0]) * 2**20 if used and used[0].split()[0].isdigit() else None


if __name__ == "__main__":
    sys.exit(answer(lambda request: probe(ProbeRequest(**request))))
