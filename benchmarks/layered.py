"""A language model computed one layer at a time in float32, by transformers' own layers, without a cache.

The reference for models larger than memory: weights as the checkpoint has them and the same weights rounded
to 4 bits go through side by side, one layer of one of them in memory. Knows nothing of exported graphs.

Run `python -m storyv_lite.benchmarks.layered` to see a trained model: what the one that ships is fed while it
draws a story, and how its states change from layer to layer.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.benchmarks.command import failed
from storyv_lite.errors import StoryVError

STORY_MODEL = Path(__file__).resolve().parents[1] / "checkpoints" / "toon"
Floats = NDArray[np.float32]
ROWS = 256  # of a weight rounded at a time


@dataclass(frozen=True)
class Layered:
    """What the last tokens' states become, and how the wide states change on their way."""

    wide: Floats  # after the final norm, (1, tokens, hidden)
    rounded: Floats  # the same with weights in 4 bits
    neighbours: tuple[float, ...]  # cosine between the states behind one layer and the next
    sizes: tuple[float, ...]  # root mean squares of the inputs and of the states behind every layer


def layer_by_layer(folder: Path, config: Mapping[str, Any], inputs: Floats, last: int) -> Layered:
    """The `last` states of `inputs` (1, tokens, hidden) read by the Llama or OPT model in `folder`."""
    import torch
    from accelerate import init_empty_weights
    from torch import nn

    from storyv_lite.export.verify import compare
    from storyv_lite.export.weights import of_folder
    from storyv_lite.modeling.checkpoints import new_component

    with init_empty_weights(include_buffers=False):
        backbone: Any = new_component(folder).eval().base_model
    prefix, opt = "model.", config["model_type"] == "opt"
    if opt:
        backbone, prefix = backbone.decoder, "model.decoder."
    hidden = torch.from_numpy(inputs)
    count = hidden.shape[1]
    positions = torch.arange(count)[None]
    mask = torch.full((count, count), float("-inf")).triu(1)[None, None]
    more: dict[str, Any] = {"attention_mask": mask, "position_ids": positions}
    with of_folder(folder) as weights, torch.no_grad():

        def filled(name: str) -> nn.Module:
            module: nn.Module = backbone.get_submodule(name)
            tensors = {key: weights[f"{prefix}{name}.{key}"].read() for key in module.state_dict()}
            module.load_state_dict({key: torch.from_numpy(t) for key, t in tensors.items()}, assign=True)
            return module

        if opt:
            table: Any = filled("embed_positions").weight
            hidden = hidden + table[2 : 2 + count]
        else:
            more["position_embeddings"] = backbone.rotary_emb(hidden, position_ids=positions)
        wide = rounded = hidden
        seen = [hidden[:, -last:].numpy()]
        for index in range(config["num_hidden_layers"]):
            layer = filled(f"layers.{index}")
            wide = layer(wide, **more)
            round_products(layer)
            rounded = layer(rounded, **more)
            backbone.layers[index].to("meta")
            seen.append(wide[:, -last:].numpy())
        norm = filled("final_layer_norm" if opt else "norm")
        states = [norm(stream)[:, -last:].numpy() for stream in (wide, rounded)]
    neighbours = tuple(compare(b, a).cosine for a, b in zip(seen[:-1], seen[1:], strict=True))
    sizes = tuple(float(np.sqrt(np.square(one).mean())) for one in seen)
    return Layered(states[0], states[1], neighbours, sizes)


def round_products(layer: Any) -> None:
    """Round every matrix of a torch module to 4 bits in blocks, and widen it again, in its place."""
    from storyv_lite.export.rounding import blocks, widen_blocks

    for tensor in layer.state_dict().values():
        if tensor.ndim == 2:
            matrix = tensor.numpy()  # the same memory
            for start in range(0, len(matrix), ROWS):
                rows = matrix[start : start + ROWS]
                rows[:] = widen_blocks(*blocks(rows.T, 4), 4, rows.shape[1]).T


def of_the_story_model(checkpoint: Path, bundle: Path) -> Layered:
    """The language model of a checkpoint on all it reads while `bundle`, made of it, draws a story."""
    from storyv_lite.components import Component
    from storyv_lite.export.calibrate import calibrate, read_stories

    language = Component.LANGUAGE_MODEL
    feeds = calibrate(bundle, read_stories(checkpoint)[:1], lambda text: None, [language])[language]
    embeds = np.concatenate([feed["inputs_embeds"] for feed in feeds], axis=1)
    config = json.loads((checkpoint / language / "config.json").read_text(encoding="utf-8"))
    return layer_by_layer(checkpoint / language, config, embeds, embeds.shape[1])


def main() -> int:
    from storyv_lite.bundle import PACKAGED
    from storyv_lite.export.verify import compare

    try:
        found = of_the_story_model(STORY_MODEL, PACKAGED)
    except StoryVError as fault:
        return failed(fault)
    figures = compare(found.rounded, found.wide)
    print("root mean square of the inputs and behind each layer:", *(f"{size:.2f}" for size in found.sizes))
    print(
        "cosine of the states before and behind a layer:", *(f"{cosine:.3f}" for cosine in found.neighbours)
    )
    print(f"states with weights in 4 bits: SNR {figures.snr_db:.1f} dB, cosine {figures.cosine:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
