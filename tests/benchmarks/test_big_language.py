"""Large language models measured: every step, at a size that takes seconds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyv_lite.benchmarks import big_language
from storyv_lite.benchmarks.layered import of_the_story_model, round_products
from storyv_lite.manifest import Part

SMALL = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 50}
NARROW = {"llama": {"intermediate_size": 352}, "opt": {"ffn_dim": 512, "word_embed_proj_dim": 128}}


def config_of(model: str) -> dict[str, Any]:
    return {**big_language.MODELS[model], **SMALL, **NARROW[model]}


@pytest.fixture(params=["llama", "opt"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A model made, exported and read at both accuracy levels: its folder and configuration."""
    config = config_of(request.param)
    big_language.make(tmp_path, config)
    exported = big_language.export(tmp_path, config)
    parts = [Part(**part) for part in exported["parts"]]
    for level in (big_language.INT4.accuracy_level, big_language.FLOAT32):
        big_language.read(tmp_path, config, parts, level)
    return tmp_path, config


def test_a_frame_read_in_4_bits_passes_the_gate_of_4_bits(read: tuple[Path, dict[str, Any]]) -> None:
    found = big_language.reference(*read)
    assert found["failures"] == []
    assert found["snr_db"] >= found["limits"]["snr_db"]
    same = found["same_weights_snr_db"]
    assert found["same_weights_float32_snr_db"] > max(80, same + 10) and same > found["snr_db"]


def test_states_of_another_model_fail_the_gate(read: tuple[Path, dict[str, Any]]) -> None:
    folder, config = read
    file = folder / big_language.states_file(big_language.INT4.accuracy_level)
    np.save(file, np.random.default_rng(0).standard_normal(np.load(file).shape, dtype=np.float32))
    failures = big_language.reference(folder, config)["failures"]
    assert len(failures) == 2 and "snr_db" in failures[0] and "image_states_cosine" in failures[1]


def test_rounded_products_are_what_an_export_stores() -> None:
    from torch import nn

    from storyv_lite.export.rounding import blocks, widen_blocks

    layer = nn.Linear(64, 600)
    weight, bias = layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()
    round_products(layer)
    assert np.array_equal(layer.weight.detach().numpy(), widen_blocks(*blocks(weight.T, 4), 4, 64).T)
    assert np.array_equal(layer.bias.detach().numpy(), bias)


def test_a_table_says_whether_the_gate_was_passed() -> None:
    part = Part("a", 1, "b")
    reference = {
        "peak_bytes": 1,
        "snr_db": 1.0,
        "image_states_cosine": 1.0,
        "same_weights_snr_db": 1.0,
        "same_weights_float32_snr_db": 1.0,
        "failures": ["`language_model` has snr_db 1; 10 is needed"],
    }
    row = {
        "model": "opt",
        "layers": 2,
        "make": {"parameters": 1},
        "export": {"bytes": 1, "parts": [asdict(part)], "peak_bytes": 1},
        "killed_after_parts": 1,
        "read": {"seconds": 1.0, "peak_bytes": 1},
        "reference": reference,
    }
    assert "10 is needed" in big_language.table([row])
    assert "passed" in big_language.table([{**row, "reference": {**reference, "failures": []}}])


def test_layers_one_at_a_time_are_the_whole_model(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    import torch

    from storyv_lite.export.calibrate import calibrate, read_stories
    from storyv_lite.export.verify import compare
    from storyv_lite.modeling.checkpoints import load_component

    found = of_the_story_model(tiny_checkpoint, tiny_bundle)
    story = read_stories(tiny_checkpoint)[:1]
    feeds = calibrate(tiny_bundle, story, lambda text: None, [big_language.LLM])[big_language.LLM]
    embeds = torch.from_numpy(np.concatenate([feed["inputs_embeds"] for feed in feeds], axis=1))
    whole: Any = load_component(tiny_checkpoint / big_language.LLM).float().eval()
    with torch.no_grad():
        states = whole.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert compare(found.wide, states.numpy()).snr_db > 100
    assert len(found.sizes) == len(found.neighbours) + 1 == whole.config.num_hidden_layers + 1
