"""Loading onto a device: the module that the plain way gives, its wide weights never all in memory."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from storyv_lite.modeling.checkpoints import load_component
from storyv_lite.modeling.loading import NOT_THE_BACKBONE, load_onto

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
# What the child loads, and what it says of itself: its peak before and after, by its own counter.
CHILD = """
import json, sys
from pathlib import Path
import torch
from storyv_lite.memory import resident_memory
from storyv_lite.modeling.loading import NOT_THE_BACKBONE, load_onto
from storyv_lite.modeling.quantized import quantizer
cpu = torch.device("cpu")
quantize = quantizer("nf4", cpu, torch.float32)
import transformers.models.llama.modeling_llama, accelerate
layer = torch.nn.Linear(64, 64)
quantize(layer, layer.weight.data)(torch.zeros(1, 64))
before = resident_memory().peak
model = load_onto(Path(sys.argv[1]), cpu, torch.float32, quantize, NOT_THE_BACKBONE)
after = resident_memory()
print(json.dumps({"before": before, "peak": after.peak, "anonymous": after.anonymous, "file": after.file}))
"""


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def test_every_component_is_the_one_that_is_loaded_whole(tiny_checkpoint: Path) -> None:
    folders = sorted(file.parent for file in tiny_checkpoint.glob("*/model.safetensors"))
    assert len(folders) == 9
    for folder in folders:
        without = NOT_THE_BACKBONE if folder.name == "language_model" else ()
        found, needed = load_onto(folder, CPU, torch.float32, without=without), load_component(folder)
        assert type(found) is type(needed) and not found.training
        ours, theirs = weights(found), weights(needed)
        for name, tensor in ours.items():
            if without and name.endswith(without):
                assert tensor.is_meta
            else:
                assert torch.equal(tensor, theirs[name]) and not tensor.requires_grad, name


def test_weights_become_the_type_asked_for_and_tables_of_positions_stay_wide(tiny_checkpoint: Path) -> None:
    model = load_onto(tiny_checkpoint / "language_model", CPU, torch.bfloat16, without=NOT_THE_BACKBONE)
    assert {p.dtype for p in model.parameters() if not p.is_meta} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


def write_llama(folder: Path, **sizes: int) -> int:
    """A Llama of random 16-bit weights, written tensor by tensor; returns the bytes of its weights."""
    config = LlamaConfig(vocab_size=256, max_position_embeddings=64, **sizes)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(
        json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = torch.Generator().manual_seed(0)
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            stream.write((torch.randn(shape, generator=random) * 0.02).half().numpy().tobytes())
    return offset


def measured(folder: Path) -> dict[str, int]:
    """Memory of a process that loads the model in `folder` in NF4, in bytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, env=environment
    )
    assert child.returncode == 0, child.stderr
    found: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_wide_weights_of_a_language_model_are_never_all_in_memory(tmp_path: Path) -> None:
    full = write_llama(
        tmp_path / "llama",
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=15,
        num_attention_heads=12,
    )
    assert full > 200 * 10**6
    found = measured(tmp_path / "llama")
    # 4.127 of 16 bits stay; the rest is one layer of 768 x 2048 on its way: 32-bit copies, codes, the map.
    assert found["peak"] - found["before"] < 0.6 * full
