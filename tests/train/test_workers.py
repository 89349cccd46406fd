"""Batches made ahead are the batches that would have been made in place."""

import multiprocessing
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from storyv_lite.train.loop import step_rng
from storyv_lite.train.workers import prefetched

ELSEWHERE = torch.device("cuda")  # a name is enough: batches never touch the device


def made(step: int) -> tuple[int, int, torch.Tensor]:
    return step, os.getpid(), torch.from_numpy(step_rng(1, "stage", step).random(3))


@pytest.fixture
def batches() -> Iterator[list[tuple[int, int, torch.Tensor]]]:
    steps = range(5, 12)
    with prefetched(made, steps, ELSEWHERE) as fetch:
        yield [fetch(step) for step in steps]


def test_batches_come_in_order_and_are_what_the_step_says(
    batches: list[tuple[int, int, torch.Tensor]],
) -> None:
    assert [step for step, _, _ in batches] == list(range(5, 12))
    for step, _, values in batches:
        assert np.array_equal(values, made(step)[2])


def test_batches_for_an_accelerator_are_made_by_other_processes(
    batches: list[tuple[int, int, torch.Tensor]],
) -> None:
    assert os.getpid() not in {process for _, process, _ in batches}


def test_on_the_cpu_a_batch_is_made_where_it_is_needed() -> None:
    with prefetched(made, range(2), torch.device("cpu")) as fetch:
        assert fetch(1)[:2] == (1, os.getpid())


def test_a_fault_in_a_batch_is_raised_where_the_batch_is_asked_for() -> None:
    def fails(step: int) -> int:
        raise ValueError(f"no batch {step}")

    with prefetched(fails, range(3), ELSEWHERE) as fetch, pytest.raises(ValueError, match="no batch 0"):
        fetch(0)


def test_who_makes_batches_is_gone_when_a_training_is_broken_off() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(ArithmeticError) as fault, prefetched(made, range(50), ELSEWHERE) as fetch:
        fetch(0)
        assert set(multiprocessing.active_children()) - before
        raise ArithmeticError
    assert fault.value and not set(multiprocessing.active_children()) - before
