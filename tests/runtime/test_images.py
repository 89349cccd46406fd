"""Pictures at the borders: exact sizes and values, PNG files that say what they are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storyv_lite.errors import BundleError
from storyv_lite.runtime.images import pixel_values, png, read_portrait, to_pixels


def test_an_encoder_sees_the_mean_of_the_pixels_it_shrinks() -> None:
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    image[:2, :2] = [[[10, 0, 255]] * 2, [[30, 0, 255]] * 2]
    values = pixel_values(image, 2)
    assert values.shape == (1, 3, 2, 2)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 0, 0] * 255, [20, 0, 255], atol=1e-4)
    assert values[0, :, 1, 1].tolist() == [0, 0, 0]


def test_decoder_values_become_bytes_and_are_clipped() -> None:
    floats = np.array([-1.0, 0.0, 0.5, 1.0, 7.0], dtype=np.float32)
    pixels = to_pixels(np.broadcast_to(floats, (1, 3, 1, 5)))
    assert pixels.dtype == np.uint8
    assert pixels[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_a_png_keeps_every_pixel_and_tells_how_it_was_drawn() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    text = {"seed": "7", "caption": 'Milo says "été" <b>狐</b>'}
    content = png(image, text)
    with Image.open(io.BytesIO(content)) as file:
        assert np.array_equal(np.asarray(file), image)
        assert {key: file.info[key] for key in text} == text
    assert png(image, text) == content


def test_a_portrait_is_padded_to_a_square_and_stands_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 8), (0, 0, 0, 0)).save(tmp_path / "milo.png")
    portrait = read_portrait(tmp_path / "milo.png")
    assert portrait.shape == (8, 8, 3)
    assert (portrait == 255).all()


def test_a_portrait_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "milo.png").write_text("<svg/>")
    with pytest.raises(BundleError, match=r"milo\.png` is no picture"):
        read_portrait(tmp_path / "milo.png")
