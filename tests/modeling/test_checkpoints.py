"""Checkpoint folders: what is stored comes back, damage is named, writes are atomic, nothing is unpickled."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from storyv_lite.config import UNetConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling import checkpoints
from storyv_lite.modeling.autoencoder import ToonAutoencoder
from storyv_lite.modeling.fusion import Fusion
from storyv_lite.modeling.mapper import Mapper
from storyv_lite.modeling.story_lm import VisualProjection
from storyv_lite.modeling.unet import build_unet

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def autoencoder() -> ToonAutoencoder:
    torch.manual_seed(0)
    model: ToonAutoencoder = ToonAutoencoder(4, (32, 32), (1, 1), 4, 8)
    return model


def modules() -> dict[str, nn.Module]:
    return {
        "ToonAutoencoder": autoencoder(),
        "Fusion": Fusion(32),
        "Mapper": Mapper(32, 32, 1, 2, 64, 4, 16, 32),
        "VisualProjection": VisualProjection(32, 2, 32),
        "CLIPTextModel": CLIPTextModel(CLIPTextConfig(vocab_size=64, projection_dim=32, **SMALL)),
        "CLIPVisionModelWithProjection": CLIPVisionModelWithProjection(
            CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=32, **SMALL)
        ),
        "UNet2DConditionModel": build_unet(
            UNetConfig(sample_size=8, block_out_channels=(32, 64), attention_levels=(True, False)), 4, 32
        ),
        "LlamaForCausalLM": LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **SMALL)),
        "OPTForCausalLM": OPTForCausalLM(
            OPTConfig(
                vocab_size=64,
                hidden_size=32,
                ffn_dim=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                word_embed_proj_dim=32,
                max_position_embeddings=32,
            )
        ),
    }


def test_every_component_class_comes_back_with_equal_weights(tmp_path: Path) -> None:
    for name, module in modules().items():
        checkpoints.save_component(module, tmp_path / name)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "config.json",
            "model.safetensors",
        ]
        loaded = checkpoints.load_component(tmp_path / name)
        assert type(loaded) is type(module) and not loaded.training
        stored = module.state_dict()
        assert loaded.state_dict().keys() == stored.keys()
        assert all(torch.equal(value, stored[key]) for key, value in loaded.state_dict().items()), name


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    checkpoints.save_component(autoencoder(), tmp_path / "autoencoder")
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    checkpoints.load_component(tmp_path / "autoencoder")
    assert torch.equal(torch.rand(1), expected)


def test_weights_may_be_stored_in_16_bits(tmp_path: Path) -> None:
    model = autoencoder()
    checkpoints.save_component(model, tmp_path / "half", dtype=torch.float16)
    loaded = checkpoints.load_component(tmp_path / "half")
    weight = next(model.parameters())
    assert torch.equal(next(loaded.parameters()), weight.half().float())


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "autoencoder"
    with pytest.raises(BundleError, match="missing"):
        checkpoints.load_component(folder)
    checkpoints.save_component(autoencoder(), folder)
    weights = folder / checkpoints.WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="damaged"):
        checkpoints.load_component(folder)
    weights.unlink()
    with pytest.raises(BundleError, match="missing"):
        checkpoints.load_component(folder)


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    checkpoints.save_component(autoencoder(), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "latent_channels": 8}))
    with pytest.raises(BundleError, match="shape"):
        checkpoints.load_component(tmp_path / "a")


def test_an_unknown_class_and_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "System"}')
    with pytest.raises(BundleError, match="System"):
        checkpoints.load_component(folder)
    (folder / "config.json").write_text('{"_class_name": "Fusion", "hidden_size": 32}')
    (folder / checkpoints.WEIGHTS).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BundleError, match="damaged"):
        checkpoints.load_component(folder)


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    checkpoints.replace_folder(folder, lambda new: checkpoints.write_json(new / "a.json", 1))

    def fail(new: Path) -> None:
        checkpoints.write_json(new / "a.json", 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.replace_folder(folder, fail)
    assert json.loads((folder / "a.json").read_text()) == 1


def test_a_swap_killed_between_its_renames_is_finished(tmp_path: Path) -> None:
    folder, old, new = (tmp_path / name for name in ("state", ".state.old", ".state.new"))
    for path, value in ((old, 1), (new, 2)):
        path.mkdir()
        checkpoints.write_json(path / "a.json", value)
    checkpoints.settle_folder(folder)
    assert json.loads((folder / "a.json").read_text()) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_swap_is_finished_by_who_writes_and_not_by_who_reads(tmp_path: Path) -> None:
    for name in (".unet.old", ".unet.new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints.WEIGHTS).write_bytes(name.encode())
    assert not checkpoints.has_component(tmp_path / "unet")
    checkpoints.settle_checkpoint(tmp_path)
    assert (tmp_path / "unet" / checkpoints.WEIGHTS).read_bytes() == b".unet.new"
    assert [path.name for path in tmp_path.iterdir()] == ["unet"]


def test_stage_records_are_kept_beside_everything_else(tmp_path: Path) -> None:
    assert checkpoints.stage_record(tmp_path, "align") == {}
    checkpoints.write_checkpoint(tmp_path, {"preset": "toon"})
    checkpoints.record_stage(tmp_path, "align", {"steps": 3})
    checkpoints.record_stage(tmp_path, "char_ldm", {"steps": 4})
    content = checkpoints.read_checkpoint(tmp_path)
    assert content["preset"] == "toon" and content["stages"]["align"] == {"steps": 3}


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    checkpoints.write_json(tmp_path / "checkpoint.json", {"schema": checkpoints.SCHEMA + 1})
    with pytest.raises(BundleError, match="schema"):
        checkpoints.read_checkpoint(tmp_path)
