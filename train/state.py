"""What a stage needs to go on exactly where it stopped: weights, averages, optimizer moments, progress.

Knows the files; when they are written and read is the loop's business.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from storyv_lite.errors import BundleError
from storyv_lite.modeling.checkpoints import replace_folder, settle_folder


@dataclass(frozen=True)
class StageProgress:
    """How far a stage has come; stored in `checkpoint.json`."""

    steps: int = 0
    max_train_steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    done: bool = False


def write_state(
    folder: Path,
    progress: StageProgress,
    resumed_at: int | None,
    learned: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Sequence[Tensor],
) -> None:
    """Replace the state in `folder` by this one, whole or not at all."""
    tensors = {f"model.{name}": p.detach() for name, p in learned.items()}
    tensors |= {f"average.{name}": mean for name, mean in zip(learned, average, strict=False)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    def write(new: Path) -> None:
        save_file(tensors, new / "state.safetensors")
        text = json.dumps({**asdict(progress), "resumed_at": resumed_at})
        (new / "state.json").write_text(text, encoding="utf-8")

    replace_folder(folder, write)


def read_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Progress and tensors as `write_state` left them, or None."""
    settle_folder(folder)
    if not (folder / "state.json").is_file():
        return None
    return json.loads((folder / "state.json").read_text(encoding="utf-8")), load_file(
        folder / "state.safetensors"
    )


def restore(
    state: tuple[dict[str, Any], dict[str, Tensor]],
    learned: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    average: Sequence[Tensor],
    folder: Path,
) -> tuple[StageProgress, int | None]:
    """Put a state back; how far it had come and at which step it had begun warm.

    Raises `BundleError` when it belongs to other modules.
    """
    record, tensors = state
    stored = {
        name.removeprefix("model."): t.shape for name, t in tensors.items() if name.startswith("model.")
    }
    if stored != {name: p.shape for name, p in learned.items()}:
        raise BundleError(
            f"the training state in `{folder}` belongs to a model of another shape",
            hint=f"go on from the stored weights without it: {shlex.join(['rm', '-r', str(folder)])}",
        )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, of_one in moments.items():
        for moment, tensor in of_one.items():
            if tensor.shape == (like := parameters[number]).shape and tensor.ndim:
                # The fused optimizer walks memory, so a moment has to lie as its parameter does.
                of_one[moment] = torch.empty_like(like, memory_format=torch.preserve_format).copy_(tensor)
    with torch.no_grad():
        for name, parameter in learned.items():
            parameter.copy_(tensors[f"model.{name}"])
        for name, mean in zip(learned, average, strict=False):
            mean.copy_(tensors.get(f"average.{name}", learned[name]))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    resumed_at = record.pop("resumed_at")
    return StageProgress(**record), resumed_at
