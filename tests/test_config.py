"""Presets, TOML files and `--set`: what is read, and that every fault is told at once."""

from pathlib import Path

import pytest

from storyv_lite.config import TrainConfig
from storyv_lite.errors import ConfigError
from storyv_lite.presets import PRESETS, load_config
from storyv_lite.runtime.context import RECENT


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_trained_as_it_stands(preset: str) -> None:
    assert load_config(preset).preset == preset


def test_settings_change_one_value_and_keep_its_type() -> None:
    settings = ["seed=7", "align.learning_rate=1", "model.unet.block_out_channels=[32, 64, 64]"]
    config = load_config("toon", settings=[*settings, "char_ldm.train_text_encoder=false"])
    assert (config.seed, config.align.learning_rate) == (7, 1.0)
    assert type(config.align.learning_rate) is float
    assert config.model.unet.block_out_channels == (32, 64, 64)
    assert config.char_ldm.train_text_encoder is False
    assert config.story_lm == TrainConfig().story_lm


def test_text_needs_no_quotes() -> None:
    config = load_config("toon", settings=["align.mixed_precision=no", "autoencoder.latents_of=some/model"])
    assert (config.align.mixed_precision, config.autoencoder.latents_of) == ("no", "some/model")


def test_settings_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("seed = 1\n[align]\nmax_train_steps = 5\nmax_frames = 4\n", encoding="utf-8")
    config = load_config("toon", file, ["align.max_train_steps=6"])
    assert (config.seed, config.align.max_train_steps, config.align.max_frames) == (1, 6, 4)


def test_every_fault_is_listed() -> None:
    settings = ["nothing=1", "align.steps=1", "seed=soon", "align=3", "seed", "align.learning_rate=-1"]
    settings.append("align.context=pictures")
    with pytest.raises(ConfigError) as caught:
        load_config("toon", settings=[*settings, "model.vision.patch_size=24"])
    for part in ("`nothing`", "`align.steps`", "`seed` is 'soon'", "`align` is a section", "`--set seed`"):
        assert part in caught.value.message
    assert "`align.learning_rate` is -1" in caught.value.message
    assert "`align.context` is `pictures`" in caught.value.message
    assert "`model.vision.image_size`" in caught.value.message


@pytest.mark.parametrize(
    ("setting", "needed"),
    [
        ("seed=-1", "at least 0"),
        ("seed=9223372036854775808", "less than 2**63"),
        ("align.learning_rate=nan", "a number"),
        ("align.validation_stories=0", "at least 1"),
        ("align.context_frames=0", "at least 8"),
        ("story_lm.context_frames=7", "at least 8"),
        ("align.drop_prob=1.5", "0 to 1"),
        ("image_text.train_batch_size=1", "at least 2"),
        ("model.text.vocab_size=100", "at least 258"),
        ("model.mapper.num_attention_heads=0", "at least 1"),
        ("model.language.hidden_size=252", "a multiple of twice `num_attention_heads` (8)"),
        ("model.autoencoder.patch_size=0", "a power of two"),
        ("model.autoencoder.block_out_channels=[]", "one number or more"),
        ("model.unet.attention_levels=[true,false]", "one word per width"),
        ("model.unet.attention_levels=[1,0,0]", "a list like [true, false]"),
        ("model.unet.norm_num_groups=7", "a multiple of `norm_num_groups` (7)"),
        ("model.unet.block_out_channels=[64,80,100]", "is 100, a multiple of `norm_num_groups` (16)"),
        ("model.unet.num_attention_heads=12", "a multiple of `num_attention_heads` (12)"),
        ("model.unet.attention_head_dim=0", "at least 1"),
        ("model.unet.layers_per_block=0", "at least 1"),
        ("model.unet.beta_schedule=foo", "not linear or scaled_linear or squaredcos_cap_v2"),
        ("model.unet.prediction_type=sample", "not epsilon or v_prediction"),
        ("judge.image_size=30", "a multiple of 4"),
        ("judge.max_train_steps=0", "at least 1"),
        ("autoencoder.max_train_steps=0", "at least 1 is needed without `model.autoencoder.pretrained`"),
        ("model.vision.pretrained=some/model", "go together"),
        ("align.processes=0", "`align.processes` is at least 1"),
        ("align.processes=5", "divides `align.train_batch_size`"),
        ("char_ldm.trainable_vision_layers=5", "at most `model.vision.num_hidden_layers` (4)"),
    ],
)
def test_what_would_fail_or_go_unnoticed_later_is_refused_at_once(setting: str, needed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("toon", settings=[setting])
    assert needed in caught.value.message
    assert setting.partition("=")[0].rpartition(".")[2] in caught.value.message


def test_levels_that_attend_are_words_of_truth() -> None:
    config = load_config("toon", settings=["model.unet.attention_levels=[true,true,false]"])
    assert config.model.unet.attention_levels == (True, True, False)


def test_a_reduced_context_has_room_for_the_frame_that_it_is_read_for() -> None:
    load_config("toon", settings=[f"align.context_frames={RECENT + 2}"])
    with pytest.raises(ConfigError, match="context_frames"):
        load_config("toon", settings=[f"align.context_frames={RECENT + 1}"])


def test_a_latent_grid_that_does_not_divide_the_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.unet\.sample_size"):
        load_config("toon", settings=["model.unet.sample_size=24"])


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tune")
    assert "toon-smoke" in caught.value.hint


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        load_config("toon", tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("seed = = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="broken.toml"):
        load_config("toon", broken)
