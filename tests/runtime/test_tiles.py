"""Decoding in tiles: seams that cannot be seen, sizes that a graph does not say, refusals."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from storyv_lite.benchmarks.tiles import measure, psnr
from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError
from storyv_lite.runtime.backends.free_size import free_size
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.runtime.tiles import Floats, decode_tiles, tile_starts, tile_weights


@pytest.mark.parametrize("size", [5, 8, 13, 16, 64])
@pytest.mark.parametrize("tile", [4, 7, 12])
def test_tiles_cover_every_cell_and_weigh_one_everywhere(size: int, tile: int) -> None:
    starts = tile_starts(size, tile)
    assert starts[0] == 0 and starts[-1] == max(size - tile, 0)
    steps = np.diff(starts)
    assert all(0 < step <= tile - -(-tile // 3) for step in steps)
    weights = tile_weights(size, tile, scale=2)
    np.testing.assert_allclose(weights.sum(axis=0), 1)
    for start, weight in zip(starts, weights, strict=True):
        outside = np.ones(size * 2, dtype=bool)
        outside[start * 2 : (start + tile) * 2] = False
        assert not weight[outside].any()


def test_what_a_decoder_answers_cell_by_cell_is_the_same_in_tiles() -> None:
    latents = np.random.default_rng(0).standard_normal((1, 3, 11, 9)).astype(np.float32)
    asked: list[tuple[int, ...]] = []

    def decode(part: Floats) -> Floats:
        asked.append(part.shape[2:])
        return part.repeat(4, axis=2).repeat(4, axis=3)

    np.testing.assert_allclose(decode_tiles(decode, latents, 5), latents.repeat(4, 2).repeat(4, 3), atol=1e-6)
    assert set(asked) == {(5, 5)}
    assert len(asked) == len(tile_starts(11, 5)) * len(tile_starts(9, 5))


def test_latents_of_one_tile_are_decoded_whole(tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    size = pipeline.bundle.model.dimensions.latent_size
    latents = np.random.default_rng(0).standard_normal((1, 4, size, size)).astype(np.float32)
    whole = pipeline.model.decode(latents)
    assert np.array_equal(pipeline.model.decode(latents, tile=size), whole)


@pytest.mark.parametrize("bundle", ["tiny_bundle", "tiny_bundle_int8"])
def test_a_picture_in_tiles_is_nearly_the_whole_one(bundle: str, request: pytest.FixtureRequest) -> None:
    pipeline = StoryPipeline.from_bundle(request.getfixturevalue(bundle), device="cpu", threads=1)
    latents = np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)
    whole = pipeline.model.decode(latents, tile=16).astype(float)
    assert whole.shape == (64, 64, 3)  # larger than the graph says
    errors = [np.square(pipeline.model.decode(latents, tile=tile) - whole).mean() for tile in (4, 12)]
    assert errors[0] > errors[1] and psnr(errors[1]) > 45


def test_pictures_of_the_default_model_in_tiles_of_twelve_cells_are_within_45_db() -> None:
    pipeline = StoryPipeline.from_bundle(PACKAGED, device="cpu", threads=1)
    size = pipeline.bundle.model.dimensions.latent_size
    found = measure(pipeline, ("Milo is standing in the meadow with a cake.", "Luna joins him."), (12, size))
    assert min(found[12]) > 45 and found[size] == [np.inf, np.inf]


def test_a_graph_with_free_sizes_is_the_same_but_for_two_axes(tiny_bundle: Path) -> None:
    content = (Bundle.open(tiny_bundle).file("vae_decoder/model.onnx")).read_bytes()
    before, after = onnx.ModelProto.FromString(content), onnx.ModelProto.FromString(free_size(content))
    for value in (*after.graph.input, *after.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert [dim.dim_param for dim in dims[2:]] == ["height", "width"] and dims[1].dim_value
    assert before.graph.node == after.graph.node and before.graph.initializer == after.graph.initializer
    for bad in (b"\x3a\x7f", b"\xff" * 11, b"\x0f"):
        with pytest.raises(ValueError, match="a field of|goes on"):
            free_size(bad)


def test_a_tile_that_is_mostly_rim_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="3 cells of latents; 4 or more"):
        StoryPipeline.from_bundle(tiny_bundle, device="cpu", tile=3)


def test_every_other_component_keeps_the_size_that_its_graph_says(tiny_bundle: Path) -> None:
    pipeline = StoryPipeline.from_bundle(tiny_bundle, device="cpu", threads=1)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    axes = manifest["components"]["unet"]["signature"]["inputs"][0]["axes"]
    session = pipeline.model.session(Component.UNET)
    assert session._parts._kept[0].get_inputs()[0].shape == axes  # type: ignore[attr-defined]
