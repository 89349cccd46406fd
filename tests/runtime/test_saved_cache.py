"""A story context that is saved and read back: equal in every bit, or refused with a reason."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from storyv_lite.bundle import Bundle
from storyv_lite.errors import BundleError
from storyv_lite.prompt import history, query
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.kv_cache import KVCache
from storyv_lite.runtime.kv_widths import Widened, narrow
from storyv_lite.runtime.model import Model

CAPTIONS = ("Milo is waving in the meadow.", "He is holding a red balloon.", "Luna is running to him there.")
WIDTHS = ("fp32", "fp16", "int8")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))


def filled(model: Model, width: str, frames: int = 3) -> KVCache:
    """A cache that holds frames with pictures that are noise."""
    rng = np.random.default_rng(0)
    shape = (model.dims.visual_tokens, model.dims.hidden_size)
    told = [
        model.piece(i, history(CAPTIONS[i % 3]), rng.standard_normal(shape).astype(np.float32))
        for i in range(frames)
    ]
    cache = model.language.new_cache(300, width)
    model.language.read(told, model.piece(frames, query(CAPTIONS[0])), cache)
    return cache


@pytest.mark.parametrize("width", WIDTHS)
def test_a_saved_cache_of_any_width_reads_on_bit_for_bit(model: Model, tmp_path: Path, width: str) -> None:
    cache, loaded = filled(model, width), model.language.new_cache(200, width)
    cache.save(tmp_path / "story.safetensors")
    loaded.load(tmp_path / "story.safetensors")
    assert loaded.pieces == cache.pieces and loaded.calls == cache.calls
    first, second = cache.to_host(), loaded.to_host()
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    context, wanted = cache.pieces[1:], model.piece(4, query(CAPTIONS[2]))
    expected = model.language.read(context, wanted, cache)
    assert np.array_equal(model.language.read(context, wanted, loaded), expected)


def test_a_cache_of_another_model_or_width_is_refused(
    model: Model, tiny_bundle_int8: Path, tmp_path: Path
) -> None:
    file = tmp_path / "story.safetensors"
    filled(model, "int8").save(file)
    with pytest.raises(BundleError, match="was saved with width `int8`; here it is `fp16`"):
        model.language.new_cache(300, "fp16").load(file)
    other = Model(Bundle.open(tiny_bundle_int8), open_backend("cpu", threads=1))
    assert other.language_sha256 != model.language_sha256
    with pytest.raises(BundleError, match=f"was saved with model `{model.language_sha256[:12]}`"):
        other.language.new_cache(300, "int8").load(file)
    with safe_open(file, framework="numpy") as saved:
        facts = saved.metadata()
    assert facts["model"] == model.language_sha256 and facts["width"] == "int8"


def test_a_cut_or_altered_file_is_refused_and_leaves_the_cache_empty(model: Model, tmp_path: Path) -> None:
    file, cache = tmp_path / "story.safetensors", model.language.new_cache(300, "int8")
    filled(model, "int8").save(file)
    content = file.read_bytes()
    for length in (0, 7, 500, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(BundleError, match="is no saved story context"):
            cache.load(file)
    header = 8 + int.from_bytes(content[:8], "little")
    places = [*range(0, header, 5), *range(header, len(content), 997), len(content) - 1]
    for place in places:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BundleError, match="is no saved story context|is damaged|has format"):
            cache.load(file)
        assert cache.committed == cache.length == 0
    file.write_bytes(content)
    cache.load(file)
    assert cache.committed > 50


def test_eight_bits_are_as_near_as_half_a_step_and_keep_zeros_and_the_largest() -> None:
    wide = np.random.default_rng(0).standard_normal((1, 2, 50, 32)).astype(np.float32)
    wide[0, 1, 7] = 0
    tensors = narrow("key.0", wide, "int8")
    assert tensors["key.0"].dtype == np.int8 and tensors["key.0.scale"].shape == (1, 2, 50, 1)
    back = Widened(tensors, 50)["key.0"]
    step = np.abs(wide).max(axis=-1, keepdims=True) / 127
    assert (np.abs(back - wide) <= step / 2 + 1e-6).all() and not back[0, 1, 7].any()
    np.testing.assert_allclose(np.abs(back).max(axis=-1), np.abs(wide).max(axis=-1), rtol=1e-6)
    assert np.abs(tensors["key.0"].astype(int)).max() == 127


def test_sixteen_bits_come_back_as_they_were_rounded() -> None:
    wide = np.random.default_rng(0).standard_normal((1, 2, 5, 32)).astype(np.float32)
    back = Widened(narrow("key.0", wide, "fp16"), 5)["key.0"]
    assert back.dtype == np.float32 and np.array_equal(back, wide.astype(np.float16).astype(np.float32))
