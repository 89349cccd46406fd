"""Weights onto a device, one tensor at a time: an empty module is filled from a mapped file.

The module begins on torch's `meta` device, without weights; each stored tensor is mapped, converted or
quantized, put where it belongs and let go. So what is resident is the finished part of the module and one
tensor in the width it is stored in. A tensor that keeps its type on the CPU is the mapped file itself.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from storyv_lite.checkpoint import TOKEN_ROWS, WEIGHTS, train_command
from storyv_lite.errors import BundleError
from storyv_lite.memory import return_freed_memory
from storyv_lite.modeling.checkpoints import misfit, new_component, refuse_misfits
from storyv_lite.tensors import StoredTensor, open_shards

# What a drawn story needs of a language model is its backbone, which is fed rows of the table.
NOT_THE_BACKBONE = (TOKEN_ROWS, "lm_head.weight")

Quantize = Callable[[nn.Linear, Tensor], nn.Linear]  # an empty layer and its weight to one that is filled

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def load_onto(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
    without: tuple[str, ...] = (),
) -> nn.Module:
    """The component in `folder` on `device`, its floating-point weights as `dtype`, in evaluation mode.

    `quantize` makes each linear layer, given one without weights and its weight as stored. Tensors whose
    names end in one of `without` are not loaded. Raises `BundleError` as `load_component` does.
    """
    from accelerate import init_empty_weights

    return_freed_memory()
    with init_empty_weights(include_buffers=False):  # buffers that are in no file are computed here
        module = new_component(folder)
    own = module.state_dict()
    missing = {name: None for name in own if not name.endswith(without or ("\n",))}
    path = folder / WEIGHTS
    problems: list[str] = []
    with open_shards(folder, WEIGHTS) as tensors:
        for name, stored in tensors.items():
            if problem := misfit(name, stored.shape, own):
                problems.append(problem)
            elif name in missing and not problems:
                _fill(module, name, as_tensor(stored), device, dtype, quantize)
            missing.pop(name, None)
    refuse_misfits(path, problems, list(missing))
    for name, buffer in list(
        module.named_buffers()
    ):  # small tables of positions, which stay as wide as they are
        _put(module, name, buffer.to(device))
    return module.requires_grad_(False).eval()


def token_table(folder: Path) -> Tensor:
    """The token embeddings (vocab_size, hidden_size) of a language model's folder, mapped, [IMG] rows last.

    Raises `BundleError`.
    """
    with open_shards(folder, WEIGHTS) as tensors:
        for name, stored in tensors.items():
            if name.endswith(TOKEN_ROWS):
                return as_tensor(stored)
    message = f"`{folder / WEIGHTS}` lacks a token table, `{TOKEN_ROWS}`"
    raise BundleError(message, hint=train_command(folder.parent))


def as_tensor(stored: StoredTensor) -> Tensor:
    """The stored tensor, mapped. Raises `BundleError` for a type that no component has."""
    return torch.from_numpy(stored.map()).view(_DTYPES[stored.dtype]).reshape(stored.shape)


def _fill(
    module: nn.Module,
    name: str,
    stored: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None,
) -> None:
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    if quantize is not None and isinstance(owner, nn.Linear) and attribute == "weight":
        module.set_submodule(path, quantize(owner, stored))
        return
    _put(module, name, stored.to(device, dtype if stored.is_floating_point() else stored.dtype))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    if attribute in owner._buffers:
        owner._buffers[attribute] = tensor
    else:
        setattr(owner, attribute, nn.Parameter(tensor, requires_grad=False))
