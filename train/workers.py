"""Batches made ahead, by processes of their own, while an accelerator trains.

Knows that batches are a pure function of the step, so that who makes them changes nothing; not what is in
them. On the CPU every core is training already, and a batch is made when it is needed.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from storyv_lite.memory import usable_cores

WORKERS = 8  # processes at most; one core stays for the loop itself


class _Steps(Dataset[Any]):
    """The batches of `steps`, in order."""

    def __init__(self, batches: Callable[[int], Any], steps: range) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Any:
        return self._batches(self._steps[index])


@contextmanager
def prefetched(
    batches: Callable[[int], Any], steps: range, place: torch.device
) -> Iterator[Callable[[int], Any]]:
    """What gives the batches of `steps`, asked for one after the other.

    `batches` must not touch the accelerator: where a system can fork, it runs in forked processes.
    """
    if place.type == "cpu":
        yield batches
        return
    workers = min(WORKERS, spare_cores()) if hasattr(os, "fork") else 0
    made: Iterator[Any] | None = iter(
        DataLoader(
            _Steps(batches, steps),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_leave_signals_to_the_loop,
            multiprocessing_context="fork" if workers else None,
        )
    )

    def fetch(_: int) -> Any:
        assert made is not None
        return next(made)

    try:
        yield fetch
    finally:
        made = None  # ends the processes; a fault on its way up would keep them till Python itself ends


def spare_cores() -> int:
    """Cores that this process may use beside its own, 1 at least."""
    return max(1, usable_cores() - 1)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_loop(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the loop ends after its step and then the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
