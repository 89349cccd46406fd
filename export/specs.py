"""What is exported, and inputs to trace it with. The modules themselves are `modeling.components`'."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from storyv_lite.components import Component, Signature, TensorSpec

GRAPHS: tuple[Component, ...] = tuple(
    component for component in Component if component is not Component.TOKEN_EMBEDDING
)


# Cells per side of pictures and latents that a large component is traced on.
SMALL = {"height": 8, "width": 8}


def opened(wanted: Signature) -> Signature:
    """The signature with the sides of latents left open; what a graph answers keeps its own."""
    return Signature(tuple(map(open_sides, wanted.inputs)), wanted.outputs)


def open_sides(spec: TensorSpec) -> TensorSpec:
    """A picture or latents whose sides are named; anything else as it is."""
    return replace(spec, axes=(*spec.axes[:2], *SMALL)) if len(spec.axes) == 4 else spec


def dummy_inputs(signature: Signature, batch: int = 2) -> tuple[Tensor, ...]:
    """Inputs to trace with: every free axis 2 or more, so that no size is mistaken for a constant 1.

    Sides of pictures and latents differ with the batch, and from each other where it is not 2.
    """
    sides = SMALL if batch == 2 else {"height": 16, "width": 24}
    free = {"batch": batch, "characters": batch, "sequence": 3, "past": 5, "total": 8, **sides}
    random = torch.Generator().manual_seed(0)

    def tensors() -> Iterator[Tensor]:
        for spec in signature.inputs:
            shape = tuple(free[axis] if isinstance(axis, str) else axis for axis in spec.axes)
            if spec.name == "attention_mask":
                yield torch.ones(shape, dtype=torch.int64)
            elif spec.dtype == "int64":
                yield torch.arange(1, 1 + _count(shape)).reshape(shape) % 8
            else:
                yield torch.randn(shape, generator=random)

    return tuple(tensors())


def _count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
