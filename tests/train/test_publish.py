"""A committed checkpoint: small, complete, without local state."""

from pathlib import Path

import pytest
import torch

from storyv_lite.errors import OutputError
from storyv_lite.export.assemble import newest_checkpoint
from storyv_lite.modeling.checkpoints import load_component
from storyv_lite.train.publish import publish


@pytest.fixture
def published(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return publish(tiny_checkpoint, tmp_path / "checkpoints" / "small")


def test_a_published_checkpoint_holds_the_same_weights_rounded_to_16_bits(
    tiny_checkpoint: Path, published: Path
) -> None:
    for config in tiny_checkpoint.glob("*/config.json"):
        wide = load_component(config.parent).state_dict()
        narrow = load_component(published / config.parent.name).state_dict()
        for name, tensor in wide.items():
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float16).float()
            assert torch.equal(narrow[name], tensor), name


def test_a_published_checkpoint_is_half_as_large_and_found_by_export(
    tiny_checkpoint: Path, published: Path
) -> None:
    def weights(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.glob("*/model.safetensors"))

    assert weights(published) < 0.6 * weights(tiny_checkpoint)
    assert not (published / "state").exists()
    assert newest_checkpoint(published.parent.parent) == published


def test_publishing_overwrites_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is there already"):
        publish(tiny_checkpoint, tmp_path)
