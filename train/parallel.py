"""Gradients computed by several processes on one processor: each takes its share of every batch.

Small networks do not keep two cores busy with two threads; two processes of one thread each do. Helpers are
forked, see the weights in shared memory and only add gradients; the optimizer, the files and the decision to
stop stay with the process that started them. A helper leaves when that process does.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn

from storyv_lite.errors import BackendError, ConfigError


def check_processes(stage: str, processes: int, device: str) -> None:
    """Raise `ConfigError` where a stage cannot be shared by several processes."""
    if processes == 1:
        return
    if device != "cpu":
        why = f"on `{device}` it must be 1"
    elif "fork" not in multiprocessing.get_all_start_methods():
        why = "and this system cannot fork"
    else:
        return
    raise ConfigError(f"`{stage}.processes` is {processes}, {why}", hint=f"--set {stage}.processes=1")


class GradientHelpers:
    """`processes` less one are forked; `work(step, rank)` returns the loss of helper `rank`'s share (from 1).

    In a `with` block the process that started them keeps to one thread, as they do; they end with it.
    """

    def __init__(
        self,
        stage: str,
        processes: int,
        modules: Iterable[nn.Module],
        work: Callable[[int, int], Tensor],
    ) -> None:
        count, modules = processes - 1, list(modules)
        self._stage = stage
        for module in modules if count else ():
            module.train().share_memory()
        self._learned = [p for module in modules for p in module.parameters() if p.requires_grad]
        self._gradients: list[list[Tensor]] = []
        self._pipes: list[Connection] = []
        context = multiprocessing.get_context("fork") if count else multiprocessing
        for rank in range(1, count + 1):
            gradients = [torch.zeros_like(p) for p in self._learned]
            for gradient in gradients:
                gradient.share_memory_()  # type: ignore[no-untyped-call]
            here, there = context.Pipe()
            arguments = (rank, there, [*self._pipes, here], self._learned, gradients, work)
            context.Process(target=_serve, args=arguments, daemon=True).start()
            there.close()
            self._gradients.append(gradients)
            self._pipes.append(here)

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        if self._pipes:
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)
        for pipe in self._pipes:  # else a traceback keeps them, they their helpers, and Python waits
            pipe.close()

    def start(self, step: int) -> None:
        """Let every helper begin its share of `step`. Raises `BackendError` when one has ended."""
        with self._all_there():
            for pipe in self._pipes:
                pipe.send(step)

    def finish(self, loss: Tensor) -> Tensor:
        """Go backward from the own `loss` and average all gradients; what is returned gives no more.

        Raises `BackendError` when a helper has ended.
        """
        if not self._pipes:
            return loss
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        with self._all_there():
            for pipe in self._pipes:
                pipe.recv()
        for index, parameter in enumerate(self._learned):
            if not parameter.requires_grad:  # no longer learned
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            for gradients in self._gradients:
                parameter.grad.add_(gradients[index])
            parameter.grad.div_(1 + len(self._pipes))
        return loss.detach().requires_grad_()

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as fault:
            raise BackendError(
                f"a process that shares `{self._stage}` has ended, for want of memory if it says no reason",
                hint=f"--set {self._stage}.processes=1",
            ) from fault


def _serve(
    rank: int,
    pipe: Connection,
    foreign: list[Connection],
    learned: list[nn.Parameter],
    gradients: list[Tensor],
    work: Callable[[int, int], Tensor],
) -> None:
    """The life of one helper."""
    for other in foreign:  # an end kept open here would hide that its owner is gone
        other.close()
    for number in (signal.SIGINT, signal.SIGTERM):  # the process that owns the files stops in good order
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    for parameter, gradient in zip(learned, gradients, strict=True):
        parameter.grad = gradient
    while True:
        try:
            step = pipe.recv()
        except EOFError:
            return
        for gradient in gradients:
            gradient.zero_()
        work(step, rank).backward()  # type: ignore[no-untyped-call]
        try:
            pipe.send(step)
        except OSError:  # who asked is gone
            return
