"""The encoders of captions and pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from storyv_lite.errors import BundleError
from storyv_lite.presets import load_config
from storyv_lite.train.conditioning import load_text_tokenizer
from storyv_lite.train.image_text import build_vision_encoder, fold_pixel_statistics
from storyv_lite.train.language_tokenizer import load_language_tokenizer


def test_a_published_picture_encoder_reads_our_pixels_as_it_read_its_own() -> None:
    torch.manual_seed(0)
    encoder = build_vision_encoder(load_config("micro").model).eval()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    with torch.no_grad():
        expected = encoder(pixel_values=(pixels - mean) / std).image_embeds
        unfolded = encoder(pixel_values=pixels * 2 - 1).image_embeds
        fold_pixel_statistics(encoder, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        folded = encoder(pixel_values=pixels * 2 - 1).image_embeds
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-4)
    assert (unfolded - expected).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("load", "stage"),
    [(lambda out: load_text_tokenizer(out, 64), "image_text"), (load_language_tokenizer, "story_lm")],
)
def test_a_missing_tokenizer_is_told_with_the_command_that_makes_it(
    tmp_path: Path, load: Callable[[Path], object], stage: str
) -> None:
    with pytest.raises(BundleError) as caught:
        load(tmp_path)
    assert caught.value.hint == f"storyv-lite train -o {tmp_path} --stage {stage}"
