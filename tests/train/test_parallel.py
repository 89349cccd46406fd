"""Processes that share the gradient of one step."""

import pytest
import torch
from torch import Tensor, nn

from storyv_lite.errors import ConfigError
from storyv_lite.train.parallel import GradientHelpers, check_processes


def test_the_gradient_of_a_step_is_the_mean_of_what_all_processes_found() -> None:
    module = nn.Linear(2, 1, bias=False).eval()

    def work(step: int, rank: int) -> Tensor:
        assert module.training
        return 3.0 * step * rank * module.weight.sum()

    helpers = GradientHelpers(2, [module], work)
    for step in (1, 2):
        helpers.start(step)
        module.zero_grad()
        helpers.finish(6.0 * module.weight.sum())
        assert module.weight.grad is not None
        assert module.weight.grad.tolist() == [[2.0 + 3.0 * step] * 2]  # (6 + 3 step + 6 step) / 3


def test_helpers_read_the_weights_as_they_are_now() -> None:
    module = nn.Linear(1, 1, bias=False)
    helpers = GradientHelpers(1, [module], lambda step, rank: module.weight.square().sum())
    with torch.no_grad():
        module.weight.fill_(5.0)
    helpers.start(0)
    helpers.finish(0.0 * module.weight.sum())
    assert module.weight.grad is not None
    assert module.weight.grad.item() == 5.0  # the mean of 0 and 2 x 5


def test_processes_that_cannot_share_are_refused_with_the_setting_that_helps() -> None:
    check_processes("align", 1, "cuda")
    with pytest.raises(ConfigError, match="`align.processes` is 2, on `cuda` it must be 1") as caught:
        check_processes("align", 2, "cuda")
    assert caught.value.hint == "--set align.processes=1"
