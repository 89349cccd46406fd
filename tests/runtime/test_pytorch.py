"""The PyTorch backend: it answers as the graphs do, in every precision, and refuses what it cannot do."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import OPTConfig, OPTForCausalLM

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import TOKEN_ROWS, TORCH, open_checkpoint
from storyv_lite.components import Component, signature
from storyv_lite.errors import BackendError, BundleError, ConfigError, StoryVError
from storyv_lite.export.specs import GRAPHS, dummy_inputs
from storyv_lite.modeling.checkpoints import save_component
from storyv_lite.modeling.components import LanguageModel
from storyv_lite.modeling.loading import NOT_THE_BACKBONE, load_onto
from storyv_lite.modeling.quantized import quantizer
from storyv_lite.runtime.backends import open_backend, open_torch_backend
from storyv_lite.runtime.backends.pytorch import TorchLanguageSession
from storyv_lite.runtime.kv_cache import KVCache, Piece
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story

STORY = Story(
    tuple(
        map(Caption, ("Milo the fox is waving.", "He is holding a red balloon.", "Luna is running to him."))
    )
)
Pictures = NDArray[np.uint8]
Edit = Callable[[dict[str, torch.Tensor]], None]


def draw(checkpoint: Path, precision: str, device: str = "cpu") -> Pictures:
    pipeline = StoryPipeline.from_checkpoint(checkpoint, device, precision, threads=1)
    return np.stack([frame.image for frame in pipeline.draw(STORY, seed=1, num_inference_steps=3)])


def levels_apart(first: Pictures, second: Pictures) -> int:
    """The largest difference of two stories, in the 256 levels of a picture."""
    return int(np.abs(first.astype(int) - second.astype(int)).max())


def embeds(checkpoint: Path, tokens: int = 12) -> NDArray[np.float32]:
    hidden = open_checkpoint(checkpoint).model.dimensions.hidden_size
    return np.random.default_rng(0).standard_normal((1, tokens, hidden)).astype(np.float32) * 0.02


def states(checkpoint: Path, precision: str, device: str = "cpu") -> NDArray[np.float32]:
    session = open_torch_backend(device, precision, 1).open_language_model(open_checkpoint(checkpoint))
    return session.read(embeds(checkpoint), session.new_cache(12), 0)


@pytest.fixture
def edited(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[str, Edit], Path]:
    """A copy of the tiny checkpoint in which the weights of one folder are changed."""

    def make(name: str, edit: Edit) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(tiny_checkpoint, folder)
        tensors = load_file(folder / name / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / name / "model.safetensors")
        return folder

    return make


def layers(tensors: dict[str, torch.Tensor]) -> list[str]:
    """The names of the linear layers' weights of a language model."""
    return [name for name in tensors if name.endswith("_proj.weight")]


def test_every_component_answers_as_its_graph_does(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    ours, theirs = open_torch_backend("cpu", "fp32", 1), open_backend("cpu", 1)
    checkpoint, bundle = open_checkpoint(tiny_checkpoint), Bundle.open(tiny_bundle)
    assert checkpoint.model == bundle.model
    for component in GRAPHS:
        wanted = signature(component, bundle.model.dimensions)
        inputs = dummy_inputs(wanted, batch=2)
        feeds = {spec.name: one.numpy() for spec, one in zip(wanted.inputs, inputs, strict=True)}
        found = ours.open(checkpoint, component).run(feeds)
        needed = theirs.open(bundle, component).run(feeds)
        assert found.keys() == {spec.name for spec in wanted.outputs}
        for name, array in found.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, needed[name], atol=1e-4, err_msg=f"{component} {name}")


def test_a_checkpoint_and_its_bundle_draw_the_same_story(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1)
    drawn = np.stack([frame.image for frame in pipeline.draw(STORY, seed=1, num_inference_steps=3)])
    assert levels_apart(draw(tiny_checkpoint, "fp32"), drawn) <= 1


def test_a_checkpoint_in_shards_draws_as_one_in_single_files(
    tiny_checkpoint: Path, tmp_path: Path, split_into_shards: Callable[[Path], None]
) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_checkpoint, folder)
    for name in ("language_model", "unet"):
        split_into_shards(folder / name)  # the token table lies in whichever it falls into
    files = [part.file for part in open_checkpoint(folder).variant(Component.UNET, TORCH).parts]
    assert files == [f"unet/model-0000{index}-of-00002.safetensors" for index in (1, 2)]
    assert levels_apart(draw(folder, "fp32"), draw(tiny_checkpoint, "fp32")) == 0
    (folder / files[1]).unlink()
    with pytest.raises(BundleError, match=f"{Path(files[1]).name}` is missing"):
        draw(folder, "fp32")


def test_reading_piece_by_piece_equals_reading_everything(tiny_checkpoint: Path) -> None:
    session = open_torch_backend("cpu", "fp32", 1).open_language_model(open_checkpoint(tiny_checkpoint))
    tokens = embeds(tiny_checkpoint)
    whole = KVCache(session.new_cache(12)).append(session, tokens)
    cache = KVCache(session.new_cache(20))
    first = cache.append(session, tokens[:, :5])
    cache.commit([Piece(0, (0,) * 5)])
    cache.append(session, -tokens[:, 5:9])  # a query, which is dropped
    cache.rewind()
    rest = cache.append(session, tokens[:, 5:])
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=1e-5)


def test_an_opt_in_nf4_is_read_piece_by_piece_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=32, word_embed_proj_dim=64, max_position_embeddings=32, **sizes)
    save_component(OPTForCausalLM(config), tmp_path)
    cpu, wide = torch.device("cpu"), torch.float32
    model = load_onto(tmp_path, cpu, wide, quantizer("nf4", cpu, wide), NOT_THE_BACKBONE)
    dims = open_checkpoint(tiny_checkpoint).model.dimensions
    session = TorchLanguageSession(LanguageModel(model), Component.LANGUAGE_MODEL, dims)
    tokens = embeds(tiny_checkpoint)
    storage = session.new_cache(12)
    first, rest = (session.read(part, storage, at) for part, at in ((tokens[:, :5], 0), (tokens[:, 5:], 5)))
    whole = session.read(tokens, session.new_cache(12), 0)
    np.testing.assert_allclose(np.concatenate([first, rest], 1), whole, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cache_goes_to_the_host_and_comes_back_as_long_as_it_was_committed(
    tiny_checkpoint: Path, tmp_path: Path, precision: str
) -> None:
    session = open_torch_backend("cpu", precision, 1).open_language_model(open_checkpoint(tiny_checkpoint))
    tokens = embeds(tiny_checkpoint)
    cache = KVCache(session.new_cache(20))
    cache.append(session, tokens[:, :9])
    cache.commit([Piece(0, (0,) * 7)])
    cache.rewind()
    host = cache.to_host()
    assert {array.shape[2] for array in host.values()} == {7} and len(host) == 4
    assert cache.nbytes == 4 * 20 * 64 * (4 if precision == "fp32" else 2)
    cache.save(tmp_path / "context.safetensors")
    again = KVCache(session.new_cache(15))
    again.load(tmp_path / "context.safetensors")
    assert all(np.array_equal(array, host[name]) for name, array in again.to_host().items())
    assert np.array_equal(again.append(session, tokens[:, 7:]), cache.append(session, tokens[:, 7:]))


def test_a_story_in_nf4_is_that_of_the_dequantized_weights(
    tiny_checkpoint: Path, edited: Callable[[str, Edit], Path]
) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in layers(tensors):
            packed, state = quantize_4bit(tensors[name], quant_type="nf4", compress_statistics=True)
            tensors[name] = dequantize_4bit(packed, state)

    wide = edited("language_model", widen)
    assert levels_apart(draw(tiny_checkpoint, "nf4"), draw(wide, "fp32")) <= 1
    np.testing.assert_allclose(states(tiny_checkpoint, "nf4"), states(wide, "fp32"), atol=1e-5)
    assert np.abs(states(tiny_checkpoint, "nf4") - states(tiny_checkpoint, "fp32")).max() > 1e-3


def test_a_story_in_int8_is_that_of_the_dequantized_weights_but_for_rounded_activations(
    tiny_checkpoint: Path, edited: Callable[[str, Edit], Path]
) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in layers(tensors):
            rows, largest, _ = int8_vectorwise_quant(tensors[name].half())
            tensors[name] = rows.float() * largest[:, None] / 127

    wide = edited("language_model", widen)
    found, needed = states(tiny_checkpoint, "int8"), states(wide, "fp32")
    noise = float(np.square(found - needed).sum() / np.square(needed).sum())
    assert 0 < noise < 1e-3  # 30 dB
    assert levels_apart(draw(tiny_checkpoint, "int8"), draw(wide, "fp32")) <= 16


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_are_computed_in_sixteen_bits(tiny_checkpoint: Path, precision: str) -> None:
    wide, narrow = states(tiny_checkpoint, "fp32"), states(tiny_checkpoint, precision)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert torch.equal(torch.from_numpy(narrow).to(kind).float(), torch.from_numpy(narrow))
    np.testing.assert_allclose(narrow, wide, atol=0.1)
    assert not np.array_equal(narrow, wide)


def refused(error: type[StoryVError], say: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=say) as caught:
        call()
    assert caught.value.message and "\n" not in caught.value.message


def test_a_word_that_is_no_precision_is_refused_with_those_that_are() -> None:
    refused(
        ConfigError, "`int3` is no precision; one of fp32, bf16", lambda: open_torch_backend("cpu", "int3")
    )
    refused(BackendError, "`tpu` is no device", lambda: open_torch_backend("tpu"))


def test_cuda_that_is_not_there_is_refused_and_auto_says_why_it_takes_the_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    refused(BackendError, "`cuda` was asked for and does not work", lambda: open_torch_backend("cuda", "nf4"))
    backend = open_torch_backend("auto")
    assert (backend.device, backend.precision) == ("cpu", "fp32") and "no CUDA" in backend.reason


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_a_missing_tensor_is_named(edited: Callable[[str, Edit], Path], precision: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    folder = edited("language_model", lambda tensors: tensors.__delitem__(name))
    refused(BundleError, f"lacks `{name}` .1 tensors", lambda: states(folder, precision))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(edited: Callable[[str, Edit], Path]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = edited("language_model", lambda tensors: tensors.update({name: torch.zeros(95, 64)}))
    say = rf"has `{name}` in the shape \(95, 64\), the model needs \(96, 64\)"
    refused(BundleError, say, lambda: states(folder, "nf4"))


def test_a_token_table_that_is_missing_or_too_short_is_refused(edited: Callable[[str, Edit], Path]) -> None:
    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if name.endswith(TOKEN_ROWS))
        tensors[name] = tensors[name][:-1].clone()

    folder = edited("language_model", shorten)
    refused(BundleError, r"\(403, 64\)", lambda: draw(folder, "fp32"))
    tensors = load_file(folder / "language_model" / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith(TOKEN_ROWS))]
    save_file(tensors, folder / "language_model" / "model.safetensors")
    refused(BundleError, "lacks a token table", lambda: draw(folder, "fp32"))


def test_a_damaged_or_missing_file_of_weights_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    weights = tmp_path / "copy" / "unet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    backend = open_torch_backend("cpu", "fp32", 1)
    opened = open_checkpoint(tmp_path / "copy")
    refused(BundleError, "is damaged", lambda: backend.open(opened, Component.UNET))
    weights.unlink()
    refused(BundleError, "is missing", lambda: open_checkpoint(tmp_path / "copy"))


def test_a_bundle_of_graphs_is_refused_and_so_is_a_checkpoint_by_the_other_backend(
    tiny_bundle: Path, tiny_checkpoint: Path
) -> None:
    ours, theirs = open_torch_backend("cpu", "fp32", 1), open_backend("cpu", 1)
    refused(BundleError, "one for `torch`", lambda: ours.open(Bundle.open(tiny_bundle), Component.UNET))
    refused(
        BundleError, "one for `onnx`", lambda: theirs.open(open_checkpoint(tiny_checkpoint), Component.UNET)
    )


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:inner dimension:UserWarning")  # 96 values are no whole block of 64
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "nf4"])
def test_cuda_reads_and_draws_as_the_cpu_does(tiny_checkpoint: Path, precision: str) -> None:
    wide = draw(tiny_checkpoint, "fp32")
    found = draw(tiny_checkpoint, precision, "cuda")
    if precision == "fp32":
        assert levels_apart(found, wide) <= 2
    ours, theirs = states(tiny_checkpoint, precision, "cuda"), states(tiny_checkpoint, precision)
    noise = float(np.square(ours - theirs).sum() / np.square(theirs).sum())
    assert noise < (1e-8 if precision == "fp32" else 1e-2)


@pytest.mark.gpu
def test_what_is_unloaded_gives_its_device_memory_back(tiny_checkpoint: Path) -> None:
    gc.collect()  # what a failed test before it holds
    before = torch.cuda.memory_allocated()
    session = open_torch_backend("cuda", "nf4").open_language_model(open_checkpoint(tiny_checkpoint))
    assert torch.cuda.memory_allocated() > before
    session.close()
    assert torch.cuda.memory_allocated() == before
