"""Published weights that cannot be had are one message, whichever part is asked for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storyv_lite.config import LanguageConfig, TextConfig, TrainConfig, UNetConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling.schedule import build_scheduler
from storyv_lite.modeling.story_lm import build_language_model
from storyv_lite.modeling.unet import build_unet
from storyv_lite.train.language_tokenizer import save_language_tokenizer
from storyv_lite.train.text_tokenizer import save_text_tokenizer


def _language_tokenizer(name: str) -> None:
    config = TrainConfig()
    model = replace(config.model, language=LanguageConfig(pretrained=name))
    save_language_tokenizer(replace(config, model=model), Path(name))


@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("unet", lambda name: build_unet(UNetConfig(pretrained=name), 4, 8)),
        ("unet", lambda name: build_scheduler(UNetConfig(pretrained=name))),
        ("language", lambda name: build_language_model(LanguageConfig(pretrained=name))),
        ("language", _language_tokenizer),
        ("text", lambda name: save_text_tokenizer(TextConfig(pretrained=name), 0, Path(name))),
    ],
)
def test_what_cannot_be_had_is_named_with_the_setting_that_names_it(
    tmp_path: Path, part: str, load: Callable[[str], object]
) -> None:
    with pytest.raises(BundleError, match="cannot be had") as caught:
        load(str(tmp_path))  # a folder that holds nothing
    assert str(tmp_path) in caught.value.message and "\n" not in caught.value.message
    assert f"--set model.{part}.pretrained=FOLDER" in caught.value.hint
