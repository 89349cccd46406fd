"""Written language models: every family answers as transformers' own module does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import ConfigError
from storyv_lite.export.capture import capture
from storyv_lite.export.stream import stream_component
from storyv_lite.export.verify import compare
from storyv_lite.modeling.checkpoints import load_component, save_component
from storyv_lite.modeling.components import LanguageModel
from storyv_lite.quantization import FP32, Method, QuantScheme
from storyv_lite.runtime.backends.ort import OrtLanguageSession, session_options
from storyv_lite.runtime.backends.parts import Parts
from storyv_lite.runtime.backends.providers import make_session
from storyv_lite.runtime.kv_cache import KVCache

DIMS = Dimensions(32, 4, 8, 16, 32, 32, 50, 64, 2, 1, 32, 128, 2, 2)
EVERY_HEAD = Dimensions(**{**DIMS.as_dict(), "num_key_value_heads": 2})
INT4 = QuantScheme("int4-block32", Method.BLOCK4, accuracy_level=4)
COMMON = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], Dimensions]] = {
    "opt": ("OPT", {"ffn_dim": 96, "word_embed_proj_dim": 64}, EVERY_HEAD),
    "llama": ("Llama", {}, DIMS),
    "smollm": ("Llama", {"tie_word_embeddings": True, "rope_theta": 100_000.0}, DIMS),
    "qwen2": ("Qwen2", {}, DIMS),
    "qwen3": ("Qwen3", {"head_dim": 32}, DIMS),
    "gemma": ("Gemma", {"head_dim": 48}, Dimensions(**{**DIMS.as_dict(), "head_dim": 48})),
}
LLM = Component.LANGUAGE_MODEL


def write(family: str, folder: Path, **options: Any) -> Dimensions:
    """A tiny checkpoint of one family, no two weights of which are alike."""
    name, more, dims = FAMILIES[family]
    kept = {
        k: v
        for k, v in COMMON.items()
        if name != "OPT" or k not in ("intermediate_size", "num_key_value_heads")
    }
    config = getattr(transformers, f"{name}Config")(**{**kept, **more, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = getattr(transformers, f"{name}ForCausalLM")(config)
        with torch.no_grad():
            for weight in module.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    save_component(module, folder / LLM)
    return dims


def session(
    folder: Path, dims: Dimensions, scheme: QuantScheme, part_bytes: int | None
) -> OrtLanguageSession:
    variant = stream_component(LLM, folder, dims, scheme, folder / "out", folder / "records", part_bytes)
    wanted = signature(LLM, dims)
    paths = [str(folder / "out" / part.file) for part in variant.parts]
    loads = [lambda path=path: make_session(path, session_options(1), "cpu") for path in paths]
    return OrtLanguageSession(Parts(loads, [spec.name for spec in wanted.outputs]), wanted, "cpu")


def read_frame(session: OrtLanguageSession, embeds: Any, past: int) -> Any:
    """States of what is read behind the first `past` tokens."""
    cache = KVCache(session.new_cache(embeds.shape[1]))
    cache.append(session, embeds[:, :past])
    return cache.append(session, embeds[:, past:])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_a_frame_behind_its_cache_as_the_module_does_without_one(
    family: str, tmp_path: Path
) -> None:
    dims = write(family, tmp_path)
    embeds = np.random.default_rng(0).standard_normal((1, 12, 64), dtype=np.float32)
    module = LanguageModel(load_component(tmp_path / LLM))
    none = [torch.zeros(1, dims.num_key_value_heads, 0, dims.head_dim)] * (2 * dims.num_hidden_layers)
    with torch.no_grad():
        everything = module(torch.from_numpy(embeds), torch.ones(1, 12, dtype=torch.long), *none)[0]
    wanted = everything[:, 7:].numpy()
    wide = session(tmp_path, dims, FP32, None)
    np.testing.assert_allclose(read_frame(wide, embeds, 7), wanted, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_exported_in_four_bits_and_in_parts(family: str, tmp_path: Path) -> None:
    dims = write(family, tmp_path)
    embeds = np.random.default_rng(0).standard_normal((1, 12, 64), dtype=np.float32)
    wide = read_frame(session(tmp_path, dims, FP32, None), embeds, 7)
    for name in ("out", "records"):
        (tmp_path / name).rename(tmp_path / f"wide-{name}")
    narrow = session(tmp_path, dims, INT4, 12_000)
    assert len(list((tmp_path / "out" / LLM).glob("*.onnx"))) > 2
    assert compare(read_frame(narrow, embeds, 7), wide).snr_db > 10


@pytest.mark.parametrize(
    ("family", "options", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "`rope_type` = `linear`"),
        ("llama", {"hidden_act": "relu"}, "`hidden_act` = `relu`"),
        ("opt", {"do_layer_norm_before": False}, "`do_layer_norm_before` = `false`"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "`sliding_attention`"),
    ],
)
def test_a_variant_that_cannot_be_written_is_refused(
    family: str, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    dims = write(family, tmp_path, **options)
    with pytest.raises(ConfigError, match=named):
        stream_component(LLM, tmp_path, dims, FP32, tmp_path / "out", tmp_path / "records")
    with pytest.raises(ConfigError, match=named):
        capture(LanguageModel(load_component(tmp_path / LLM)), LLM, dims)


def test_a_sharded_checkpoint_is_read_across_its_files(
    tmp_path: Path, split_into_shards: Callable[[Path], None]
) -> None:
    dims = write("llama", tmp_path)
    one = stream_component(LLM, tmp_path, dims, INT4, tmp_path / "out", tmp_path / "records")
    split_into_shards(tmp_path / LLM)
    again = stream_component(LLM, tmp_path, dims, INT4, tmp_path / "again", tmp_path / "other")
    assert again == one
