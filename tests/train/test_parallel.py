"""Processes that share the gradient of one step."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from storyv_lite.errors import BackendError, ConfigError
from storyv_lite.train.parallel import GradientHelpers, check_processes


def test_the_gradient_of_a_step_is_the_mean_of_what_all_processes_found() -> None:
    module = nn.Linear(2, 1, bias=False).eval()

    def work(step: int, rank: int) -> Tensor:
        assert module.training
        return 3.0 * step * rank * module.weight.sum()

    helpers = GradientHelpers("align", 3, [module], work)
    for step in (1, 2):
        helpers.start(step)
        module.zero_grad()
        helpers.finish(6.0 * module.weight.sum())
        assert module.weight.grad is not None
        assert module.weight.grad.tolist() == [[2.0 + 3.0 * step] * 2]  # (6 + 3 step + 6 step) / 3


def test_helpers_read_the_weights_as_they_are_now() -> None:
    module = nn.Linear(1, 1, bias=False)
    helpers = GradientHelpers("align", 2, [module], lambda step, rank: module.weight.square().sum())
    with torch.no_grad():
        module.weight.fill_(5.0)
    helpers.start(0)
    helpers.finish(0.0 * module.weight.sum())
    assert module.weight.grad is not None
    assert module.weight.grad.item() == 5.0  # the mean of 0 and 2 x 5


def test_a_helper_that_has_ended_is_told_with_the_setting_that_does_without() -> None:
    module = nn.Linear(1, 1)

    def work(step: int, rank: int) -> Tensor:
        os._exit(1)

    helpers = GradientHelpers("align", 2, [module], work)
    helpers.start(0)
    with pytest.raises(BackendError, match="a process that shares `align` has ended") as caught:
        helpers.finish(module.weight.sum())
    assert caught.value.hint == "--set align.processes=1"


BREAKS = """
import torch
from storyv_lite.train.parallel import GradientHelpers
module = torch.nn.Linear(1, 1)
with GradientHelpers("align", 2, [module], lambda step, rank: module.weight.sum()) as helpers:
    raise OSError("no space left on device")
"""


def test_a_training_that_breaks_off_ends_with_its_helpers() -> None:
    ended = subprocess.run([sys.executable, "-c", BREAKS], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 1 and "no space left" in ended.stderr


def test_processes_that_cannot_share_are_refused_with_the_setting_that_helps() -> None:
    check_processes("align", 1, "cuda")
    with pytest.raises(ConfigError, match="`align.processes` is 2, on `cuda` it must be 1") as caught:
        check_processes("align", 2, "cuda")
    assert caught.value.hint == "--set align.processes=1"
