"""All stages of the smallest preset: what they leave behind, and that they go on where they stopped."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import OPTConfig, OPTForCausalLM

from storyv_lite.checkpoint import describe
from storyv_lite.config import STAGES
from storyv_lite.errors import BundleError, ConfigError, OutputError
from storyv_lite.modeling.checkpoints import read_checkpoint, save_component, write_checkpoint
from storyv_lite.modeling.story_lm import add_image_rows
from storyv_lite.presets import as_dict, load_config
from storyv_lite.train import autoencoder, recipes
from storyv_lite.train.language_tokenizer import vocabulary_of
from storyv_lite.train.toonworld import draw
from storyv_lite.train.toonworld.cast import CAST
from storyv_lite.train.toonworld.corpus import scene_for

COMPONENTS = (
    "autoencoder",
    "text_encoder",
    "vision_encoder",
    "character_encoder",
    "fusion",
    "unet",
    "language_model",
    "visual_projection",
    "mapper",
    "judge",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("micro")
    assert recipes.run("micro", device="cpu", out=out)
    return out


def weights(out: Path, component: str) -> dict[str, np.ndarray[Any, Any]]:
    tensors: dict[str, np.ndarray[Any, Any]] = load_file(out / component / "model.safetensors")
    return tensors


def test_every_stage_leaves_its_components_and_what_export_reads(trained: Path) -> None:
    for name in COMPONENTS:
        assert (trained / name / "config.json").is_file() and weights(trained, name)
    for name in ("tokenizers/text_encoder/tokenizer.json", "tokenizers/language_model/tokenizer.json"):
        assert (trained / name).is_file()
    assert (trained / "scheduler" / "scheduler_config.json").is_file()
    for who in CAST:
        assert json.loads((trained / "characters" / f"{who.name}.json").read_text())["pronoun"] == who.pronoun
        with Image.open(trained / "characters" / f"{who.name}.png") as portrait:
            assert portrait.size == (256, 256)
    stories = [json.loads(line) for line in (trained / "calibration.jsonl").read_text().splitlines()]
    assert len(stories) == 32
    assert all(len(s["captions"]) == len(s["original"]) == len(s["characters"]) for s in stories)
    words = set(json.loads((trained / "vocabulary.json").read_text())["words"])
    assert {"meadow", "milo", "she"} <= words


def test_the_checkpoint_tells_how_it_was_made(trained: Path) -> None:
    content = read_checkpoint(trained)
    assert list(content["stages"]) == list(STAGES)
    assert all(record["done"] and record["steps"] == 4 for record in content["stages"].values())
    assert content["train_config"] == json.loads(json.dumps(as_dict(load_config("micro"))))
    assert content["dimensions"] == load_config("micro").model.dimensions().as_dict()


def test_settings_of_a_stage_that_is_not_trained_are_told_as_it_was_trained(
    trained: Path, tmp_path: Path
) -> None:
    out, before = shutil.copytree(trained, tmp_path / "judged"), read_checkpoint(trained)
    assert recipes.run("micro", ["judge"], "cpu", out, ["judge.max_train_steps=5", "align.max_frames=50"])
    after = read_checkpoint(out)
    assert after["train_config"]["judge"]["max_train_steps"] == 5
    assert after["train_config"]["align"] == before["train_config"]["align"]
    assert describe(out, after)["model"]["context"] == describe(trained, before)["model"]["context"]


def test_the_autoencoder_knows_the_spread_of_its_latents(trained: Path) -> None:
    config = json.loads((trained / "autoencoder" / "config.json").read_text())
    assert len(config["latents_mean"]) == len(config["latents_std"]) == 8
    assert min(config["latents_std"]) > 0


def test_an_autoencoder_that_learns_on_keeps_the_latents_of_another_checkpoint(
    trained: Path, tmp_path: Path
) -> None:
    def further(name: str, *latents_of: str) -> tuple[float, dict[str, Any]]:
        out = shutil.copytree(trained, tmp_path / name)
        record = {"autoencoder": read_checkpoint(out)["stages"]["autoencoder"]}
        write_checkpoint(out, {**read_checkpoint(out), "stages": record})  # nothing was built on its latents
        more = ["autoencoder.max_train_steps=60", "autoencoder.encoder_ratio=1", *latents_of]
        recipes.run("micro", ["autoencoder"], "cpu", out, more)
        old, new = autoencoder.load(trained), autoencoder.load(out)
        frames = np.stack([draw.render(scene_for(seed), 64).image for seed in range(8)])
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        distance = autoencoder.moved(old, pixels, new.encode(pixels).latent_dist.mode())
        return float(distance), dict(new.config)

    free, _ = further("free")
    near, config = further("near", f"autoencoder.latents_of={trained}")
    assert near < 0.5 * free
    assert config["latents_std"] == autoencoder.load(trained).config.latents_std


def test_a_decoder_that_learns_on_keeps_the_statistics_of_its_latents(trained: Path, tmp_path: Path) -> None:
    out = shutil.copytree(trained, tmp_path / "further")
    alone = ["autoencoder.max_train_steps=8", "autoencoder.encoder_ratio=0"]  # it had 4
    expected = dict(autoencoder.load(trained).config)
    recipes.run("micro", ["autoencoder"], "cpu", out, alone, minutes=1e-4)
    assert dict(autoencoder.load(out).config) == expected
    assert recipes.run("micro", ["autoencoder"], "cpu", out, alone)
    assert dict(autoencoder.load(out).config) == expected
    before, after = (weights(folder, "autoencoder")["decoder.0.weight"] for folder in (trained, out))
    assert not np.array_equal(after, before)


def test_latents_to_keep_are_those_of_another_finished_checkpoint(trained: Path, tmp_path: Path) -> None:
    setting = [f"autoencoder.latents_of={trained}", "autoencoder.max_train_steps=8"]  # it had 4
    with pytest.raises(ConfigError, match="the folder that is trained in"):
        recipes.run("micro", ["autoencoder"], "cpu", trained, setting)
    with pytest.raises(BundleError, match="holds no `autoencoder`"):
        recipes.run("micro", ["autoencoder"], "cpu", tmp_path / "new", [f"autoencoder.latents_of={tmp_path}"])


def test_a_finished_checkpoint_is_left_as_it_is(trained: Path) -> None:
    before = (trained / "unet" / "model.safetensors").stat().st_mtime_ns
    assert recipes.run("micro", device="cpu", out=trained)
    assert (trained / "unet" / "model.safetensors").stat().st_mtime_ns == before


def test_stages_in_pieces_end_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "state" / "frames-train", tmp_path / "state" / "frames-train")
    done, pieces = False, 0
    while not done and pieces < 16:
        done = recipes.run("micro", ["autoencoder", "image_text"], "cpu", tmp_path, minutes=1e-4)
        pieces += 1
    assert done and pieces > 2
    for component in ("autoencoder", "vision_encoder"):  # the caption encoder learned on since
        expected = weights(trained, component)
        found = weights(tmp_path, component)
        assert all(np.array_equal(found[name], expected[name]) for name in expected), component


def test_a_folder_of_another_model_is_refused(trained: Path) -> None:
    with pytest.raises(ConfigError, match="another `seed`"):
        recipes.run("micro", device="cpu", out=trained, settings=["seed=1"])
    with pytest.raises(ConfigError, match="another `model`"):
        recipes.run("toon", device="cpu", out=trained)


def test_a_language_model_that_learns_on_leaves_the_alignment_to_be_learned_behind_it(
    trained: Path, tmp_path: Path
) -> None:
    out, more = shutil.copytree(trained, tmp_path / "further"), ["story_lm.max_train_steps=5"]  # it had 4
    with pytest.raises(ConfigError, match="`align` has to learn on"):
        recipes.run("micro", STAGES, "cpu", out, more)
    assert recipes.run("micro", ["story_lm"], "cpu", out, more)
    told = weights(out, "language_model")
    assert not read_checkpoint(out)["stages"]["align"]["done"]
    with pytest.raises(ConfigError, match="more than its 4 steps"):
        recipes.run("micro", STAGES, "cpu", out, more)
    slow = ["align.max_train_steps=5", "align.learning_rate=1e-9"]
    assert recipes.run("micro", STAGES, "cpu", out, [*more, *slow])
    assert all(record["done"] for record in read_checkpoint(out)["stages"].values())
    for name, tensor in weights(out, "language_model").items():  # not those that align had learned before
        np.testing.assert_allclose(tensor, told[name], atol=1e-5)


def test_weights_that_are_taken_are_taken_once(tmp_path: Path) -> None:
    AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "published" / "vae")
    setting = [f"model.autoencoder.pretrained={tmp_path / 'published'}"]
    assert recipes.run("micro", ["autoencoder"], "cpu", tmp_path / "new", setting)
    before = (tmp_path / "new/autoencoder/model.safetensors").stat().st_mtime_ns
    assert recipes.run("micro", ["autoencoder"], "cpu", tmp_path / "new", setting)
    assert (tmp_path / "new/autoencoder/model.safetensors").stat().st_mtime_ns == before


def test_unknown_stages_and_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage"):
        recipes.run("micro", ["drawing"], "cpu", tmp_path)
    with pytest.raises(ConfigError, match="device"):
        recipes.run("micro", device="abacus", out=tmp_path)


def test_a_published_language_model_tells_its_own_sizes_and_its_begin_token(tmp_path: Path) -> None:
    config = OPTConfig(
        vocab_size=50, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = add_image_rows(OPTForCausalLM(config), 8)
    save_component(model, tmp_path / "language_model")
    found = recipes.dimensions(load_config("opt-6.7b"), tmp_path)
    assert (found.vocab_size, found.hidden_size, found.num_hidden_layers) == (58, 32, 2)
    assert (found.num_key_value_heads, found.head_dim, found.max_position_embeddings) == (2, 16, 64)
    vocabulary = vocabulary_of(Tokenizer(BPE()), load_config("opt-6.7b").model.language, model.config)
    assert (vocabulary.bos_token_id, vocabulary.eos_token_id, vocabulary.first_image_token_id) == (2, 2, 50)


def test_a_finished_run_changes_nothing_that_tells_how_it_was_made(trained: Path) -> None:
    before = {file: file.read_bytes() for file in trained.glob("*.json*")}
    assert recipes.run("micro", STAGES[:2], device="cpu", out=trained)
    assert {file: file.read_bytes() for file in trained.glob("*.json*")} == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where nobody may write")
def test_a_place_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        recipes.run("micro", device="cpu", out=Path("/proc/checkpoint"))
