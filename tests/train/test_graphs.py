"""What a recorded step needs: batches taken apart in one order, work without anything read back."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from storyv_lite.presets import load_config
from storyv_lite.train import autoencoder
from storyv_lite.train.graphs import StepGraph, placed, tensors
from storyv_lite.train.state import StageProgress


@dataclass(frozen=True)
class Nested:
    first: torch.Tensor
    rest: tuple[torch.Tensor, torch.Tensor]


def test_a_placed_batch_is_a_copy_with_its_tensors_in_the_same_order() -> None:
    batch = Nested(torch.zeros(2), (torch.ones(3), torch.full((4,), 2.0)))
    copy = placed(batch, torch.device("cpu"))
    batch.first.add_(9)
    assert isinstance(copy, Nested)
    assert [len(tensor) for tensor in tensors(copy)] == [2, 3, 4]
    assert [float(tensor[0]) for tensor in tensors(copy)] == [0, 1, 2]


def test_a_step_of_the_autoencoder_reads_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recordable: AbstractContextManager[Any]
) -> None:
    seen = []

    def steps(_: str, settings: Any, __: Any, batches: Any, compute_loss: Any, ___: Any, **more: Any) -> Any:
        for step in (0, settings.max_train_steps - 1):
            batch = batches(step)
            with recordable:
                compute_loss(batch, step)["loss"].backward()
            seen.append(more["phase"](step))
        return StageProgress(done=True)

    monkeypatch.setattr(autoencoder, "run_stage", steps)
    autoencoder.train(load_config("micro", None, ["autoencoder.max_train_steps=100"]), tmp_path)
    assert seen == [True, False]


@pytest.mark.gpu
def test_a_recorded_step_trains_as_an_eager_one_does_in_every_phase() -> None:
    torch.testing.assert_close(trained(recorded=False), trained(recorded=True))


def trained(recorded: bool) -> tuple[list[float], torch.Tensor]:
    """Losses and weights of sixteen steps, of which the last eight lower something else."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8).cuda()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, capturable=True)

    def work(batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = layer(batch).square().mean() if step < 8 else layer(batch).abs().sum()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    graph, losses = StepGraph(work, torch.device("cuda")), []
    for step in range(16):
        batch = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
        result = graph(batch, step, step < 8) if recorded else work(batch.cuda(), step)
        losses.append(float(result["loss"]))
    return losses, layer.weight.detach().cpu()
