"""A training step as one CUDA graph.

A small network keeps a GPU waiting for the next of a thousand small kernels; a graph launches them together.
Knows batches of constant shape and that a step reads nothing back from the device; not what it computes.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

Work = Callable[[Any, int], dict[str, Tensor]]
WARM = 3  # steps of a phase before it is recorded: libraries choose their kernels, the optimizer its state


class StepGraph:
    """`work(batch, step)` of every step, recorded anew in each phase and replayed in the rest of it."""

    def __init__(self, work: Work, device: torch.device) -> None:
        self._work, self._device = work, device
        self._phase: object = None
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: Any = None
        self._result: dict[str, Tensor] = {}

    def __call__(self, batch: Any, step: int, phase: object) -> dict[str, Tensor]:
        """What the work of `step` returns; valid until the next one."""
        if phase != self._phase:
            self._phase, self._warm, self._graph = phase, 0, None
        if self._warm < WARM:
            self._warm += 1
            return self._eagerly(placed(batch, self._device), step)
        if self._graph is None:
            self._batch, self._graph = placed(batch, self._device), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._work(self._batch, step)
        for kept, new in zip(tensors(self._batch), tensors(batch), strict=True):
            kept.copy_(new, non_blocking=True)
        self._graph.replay()
        return self._result

    def _eagerly(self, batch: Any, step: int) -> dict[str, Tensor]:
        """On a stream of its own, as recording asks of everything that it repeats."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            result = self._work(batch, step)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return result


def placed(batch: Any, device: torch.device) -> Any:
    """A copy of a batch (tensors, or a dataclass, tuple or list of such) on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, copy=True)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{f.name: placed(getattr(batch, f.name), device) for f in fields(batch)})
    return [placed(part, device) for part in batch]


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in an order that its structure alone decides."""
    if isinstance(batch, Tensor):
        return [batch]
    parts: Iterable[Any] = vars(batch).values() if is_dataclass(batch) else batch
    return [tensor for part in parts for tensor in tensors(part)]
