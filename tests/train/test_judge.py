"""The judge: what it reads, what its stage leaves behind, and that it can learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from storyv_lite.modeling.checkpoints import load_component, read_checkpoint, save_component
from storyv_lite.modeling.judge import Judge
from storyv_lite.presets import load_config
from storyv_lite.train import recipes
from storyv_lite.train.image_text import NAMES, truths
from storyv_lite.train.judge import accuracy, build
from storyv_lite.train.toonworld import corpus, draw
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, POSITIONS, PROPS

SCENES = [corpus.scene_for(seed) for seed in range(6)]


def small(seed: int = 0) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(32, (16, 32), 1)


def images(size: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.stack([draw.render(scene, size).image for scene in SCENES])


def test_a_verdict_has_a_row_per_picture_and_at_most_one_place() -> None:
    verdict = small().read(images())
    assert verdict.present.shape == verdict.actions.shape == (6, len(NAMES))
    assert verdict.places.shape == (6, len(PLACES)) and verdict.places.sum(1).max() <= 1
    assert verdict.positions.max() < len(POSITIONS) and verdict.actions.max() < len(ACTIONS)
    assert verdict.props.max() <= len(PROPS)
    assert verdict.characters.shape == (6, len(NAMES), verdict.features.shape[1])


def test_a_picture_is_read_alike_alone_and_among_others() -> None:
    judge, pictures = small(), images()
    together, alone = judge.read(pictures), judge.read(pictures[2:3])
    np.testing.assert_allclose(together.features[2:3], alone.features, atol=1e-5)


def test_a_stored_judge_reads_the_same_and_knows_its_words(tmp_path: Path) -> None:
    judge = small()
    save_component(judge, tmp_path / "judge")
    again = load_component(tmp_path / "judge")
    assert isinstance(again, Judge) and list(again.config.cast) == NAMES
    np.testing.assert_array_equal(judge.read(images()).features, again.read(images()).features)


def test_accuracy_counts_whole_frames_for_characters_and_characters_for_details() -> None:
    places, present, details = truths(SCENES)
    verdict = small().read(images())
    perfect = verdict._replace(
        places=np.arange(len(PLACES)) == places.numpy()[:, None],
        present=present.numpy() > 0,
        positions=details[..., 0].numpy(),
        actions=details[..., 1].numpy(),
        props=details[..., 2].numpy(),
    )
    assert set(accuracy(perfect, places, present, details).values()) == {100.0}
    wrong = perfect.present.copy()
    wrong[0, 0] = ~wrong[0, 0]
    found = accuracy(perfect._replace(present=wrong), places, present, details)
    assert found["characters"] == pytest.approx(100 * 5 / 6, abs=0.01) and found["actions"] == 100.0


def test_the_stage_leaves_a_judge_and_says_how_good_it_is(tmp_path: Path) -> None:
    assert recipes.run("micro", ["autoencoder", "judge"], "cpu", tmp_path)
    assert isinstance(load_component(tmp_path / "judge"), Judge)
    report = read_checkpoint(tmp_path)["judge"]
    assert report["frames"] == 4 and {*report["real"], "psnr"} == {*report["autoencoder"]}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"stage": "judge", "test": report} in lines
    recipes.describe(load_config("micro"), tmp_path)  # as the next stage does
    assert read_checkpoint(tmp_path)["judge"] == report


def test_the_default_judge_fits_beside_a_checkpoint() -> None:
    settings = load_config("toon").judge
    judge = build(settings.image_size, settings.block_out_channels, settings.layers_per_block)
    assert 2 * sum(parameter.numel() for parameter in judge.parameters()) < 3 * 2**20
