"""Stage 2: batches, losses, what learns and what stays."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storyv_lite.checkpoint import checkpoint_hash
from storyv_lite.components import Dimensions
from storyv_lite.config import (
    AlignStage,
    AutoencoderConfig,
    LanguageConfig,
    MapperConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
    VisionConfig,
)
from storyv_lite.errors import BundleError
from storyv_lite.manifest import Context
from storyv_lite.modeling.checkpoints import load_component, read_checkpoint
from storyv_lite.modeling.packing import Kind, visible
from storyv_lite.runtime.context import RECENT, Finished, reduce
from storyv_lite.train import align
from storyv_lite.train.alignment import Aligned, exchange
from storyv_lite.train.conditioning import Conditioner, load_text_tokenizer
from storyv_lite.train.language_tokenizer import load_language_tokenizer, vocabulary_of
from storyv_lite.train.telling import tell, window
from storyv_lite.train.toonworld import draw
from storyv_lite.train.toonworld.cast import CAST
from storyv_lite.train.toonworld.references import WINDOW
from storyv_lite.train.toonworld.scene import Actor, Scene


def tiny_config(folder: Path, **stage: object) -> TrainConfig:
    """The configuration that fits the tiny checkpoint of the tests."""
    d = Dimensions(**read_checkpoint(folder)["dimensions"])
    return TrainConfig(
        preset="tiny",
        model=ModelConfig(
            image_size=d.image_size,
            autoencoder=AutoencoderConfig(latent_channels=d.latent_channels),
            text=TextConfig(hidden_size=d.cross_attention_dim, max_position_embeddings=d.text_tokens),
            vision=VisionConfig(image_size=d.vision_image_size),
            unet=UNetConfig(sample_size=d.latent_size),
            language=LanguageConfig(
                vocab_size=d.vocab_size - d.image_tokens,
                hidden_size=d.hidden_size,
                image_tokens=d.image_tokens,
                visual_tokens=d.visual_tokens,
            ),
            mapper=MapperConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
            ),
        ),
        align=replace(
            AlignStage(
                max_train_steps=2,
                train_batch_size=4,
                max_frames=4,
                validation_stories=3,
                lr_warmup_steps=1,
                sample_steps=100,
                checkpointing_steps=1,
                mixed_precision="no",
            ),
            **stage,  # type: ignore[arg-type]
        ),
    )


def fresh_parts(folder: Path) -> None:
    """Remove what the stage itself makes."""
    for name in ("mapper", "visual_projection"):
        (folder / name / "model.safetensors").unlink()


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own, to be written into."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny"))


@pytest.fixture
def parts(folder: Path) -> tuple[align.Batches, Aligned]:
    return parts_of(folder)


def parts_of(folder: Path, **stage: object) -> tuple[align.Batches, Aligned]:
    config = tiny_config(folder, **stage)
    names = ("text_encoder", "character_encoder", "fusion", "vision_encoder")
    frozen = [load_component(folder / name).requires_grad_(False) for name in names]
    torch.manual_seed(0)
    lm, mapper = align.build(config, folder, frozen[3], frozen[0])
    tokenizer = load_text_tokenizer(folder, config.model.text.max_position_embeddings)
    portraits = {who.name: draw.portrait(who.name, config.model.vision.image_size) for who in CAST}
    vocabulary = vocabulary_of(
        load_language_tokenizer(folder), config.model.language, lm.language_model.config
    )
    aligned = Aligned(lm, mapper, Conditioner(*frozen[:3]), frozen[3], tokenizer, portraits)
    return align.Batches(config, vocabulary, tokenizer, portraits), aligned


@pytest.mark.parametrize(("pretrained", "own"), [("", False), ("some/model", True)])
def test_a_pretrained_model_keeps_its_own_attention(folder: Path, pretrained: str, own: bool) -> None:
    config = tiny_config(folder)
    language = replace(config.model.language, pretrained=pretrained)
    config = replace(config, model=replace(config.model, language=language))
    vision, text, fresh = (
        load_component(folder / name) for name in ("vision_encoder", "text_encoder", "language_model")
    )
    lm, _ = align.build(config, folder, vision, text)
    ours, theirs = (getattr(m.config, "_attn_implementation") for m in (lm.language_model, fresh))  # noqa: B009
    assert (ours == theirs) is own


def test_overfitting_one_story_halves_the_loss(parts: tuple[align.Batches, Aligned]) -> None:
    batches, aligned = parts
    batch = batches.of([tell(5, 4, "train")], np.random.default_rng(0), 0.0, 0.0)
    learned = [*aligned.lm.parameters(), *aligned.mapper.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
    history = []
    for _ in range(60):
        losses = align.losses(aligned, batch, AlignStage())
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["alignment"] < 0.5 * history[0]["alignment"]


def test_every_frame_is_a_target_and_every_finished_frame_a_picture(
    parts: tuple[align.Batches, Aligned],
) -> None:
    batches, aligned = parts
    batch = batches.of([tell(5, 4, "train"), tell(6, 4, "train")], np.random.default_rng(0), 0.5, 0.0)
    shape = batches.config.model.language
    assert len(batch.targets.input_ids) == 8 and len(batch.pixels) == 6
    assert int((batch.stories.kinds == Kind.PICTURE).sum()) == 6 * shape.visual_tokens
    assert int((batch.stories.kinds == Kind.IMAGE).sum()) == 8 * shape.image_tokens


def test_the_target_is_the_fused_embedding_of_the_plain_caption(
    parts: tuple[align.Batches, Aligned],
) -> None:
    batches, aligned = parts
    telling = tell(5, 4, "train")
    batch = batches.of([telling], np.random.default_rng(0), 0.0, 0.0)
    assert telling.reference[1] != telling.plain[1]
    expected = aligned.conditioning(list(telling.plain), "cpu")
    torch.testing.assert_close(aligned.conditioner(batch.targets), expected)


def test_a_context_of_captions_holds_no_picture(parts: tuple[align.Batches, Aligned]) -> None:
    batches, aligned = parts
    settings = replace(batches.config.align, context="captions")
    alone = replace(batches, config=replace(batches.config, align=settings))
    batch = alone.of([tell(5, 4, "train")], np.random.default_rng(0), 0.5, 0.0)
    assert len(batch.pixels) == 0 and not bool((batch.stories.kinds == Kind.PICTURE).any())
    loss = align.losses(aligned, batch, settings)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert bool(loss.isfinite())


def test_a_batch_is_a_function_of_its_step(parts: tuple[align.Batches, Aligned]) -> None:
    batches, _ = parts
    assert torch.equal(batches(7).stories.input_ids, batches(7).stories.input_ids)
    assert batches(7).stories.input_ids.shape != batches(8).stories.input_ids.shape or not torch.equal(
        batches(7).stories.input_ids, batches(8).stories.input_ids
    )


def test_stories_of_the_last_quarter_are_no_shorter_than_asked(folder: Path) -> None:
    asked = {"min_frames": 22, "max_frames": 22, "context_frames": 22, "drop_prob": 0.0}
    batches, _ = parts_of(folder, max_train_steps=100, **asked)
    for step in (97, 98, 99):
        assert len(batches(step).targets.input_ids) == 22


def test_a_reduced_context_keeps_introductions_and_all_antecedents_of_its_targets() -> None:
    assert RECENT > WINDOW
    rng, reduced = np.random.default_rng(0), 0
    for seed in range(30):
        telling = tell(seed, 16, "train")
        names = telling.names
        kept = window(names, telling.placed, rng, drop_prob=1.0, context_frames=24)
        frames = [frame for frame, _ in kept]
        assert frames == sorted(set(frames)) and frames[-1] == 15
        reduced += len(kept) < 16
        first_seen = {
            name: next(i for i, shown in enumerate(names) if name in shown) for n in names for name in n
        }
        assert set(first_seen.values()) <= set(frames)
        for position, (frame, target) in enumerate(kept):
            before = frames[:position]
            whole = before == list(range(frame))
            assert not target or whole or set(range(frame - RECENT, frame)) <= set(before)
    assert reduced > 15


def test_a_long_story_is_read_in_training_as_it_is_in_drawing() -> None:
    rng, limits, reduced = np.random.default_rng(0), Context(tokens=4096, frames=24), 0
    for seed in range(20):
        telling = tell(seed, 50, "train")
        names, placed = telling.names, telling.placed
        kept = window(names, placed, rng, drop_prob=0.0, context_frames=24)
        frames = [frame for frame, _ in kept]
        assert len(frames) <= 24
        begins = [frame for place, (frame, target) in enumerate(kept) if target and frame != place]
        if not begins:  # nothing was dropped before the first 24 frames
            continue
        reduced, begin = reduced + 1, begins[0]
        story = [Finished(1, frozenset(shown), place) for shown, place in zip(names, placed, strict=True)]
        assert tuple(frame for frame in frames if frame < begin) == reduce(story[:begin], 1, limits)
    assert reduced > 10


def test_a_trainable_language_model_learns_and_a_frozen_one_keeps_all_but_its_image_rows(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for trainable in (True, False):
        folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / str(trainable)))
        before = load_component(folder / "language_model").state_dict()
        config = tiny_config(folder)
        language = replace(config.model.language, trainable=trainable)
        config = replace(config, model=replace(config.model, language=language))
        assert align.train(config, folder)
        after = load_component(folder / "language_model").state_dict()
        name = "model.embed_tokens.weight"
        rows = language.image_tokens
        assert not torch.equal(after[name][-rows:], before[name][-rows:])
        assert torch.equal(after[name][:-rows], before[name][:-rows]) != trainable
        assert torch.equal(after["model.norm.weight"], before["model.norm.weight"]) != trainable
        record = read_checkpoint(folder)["stages"]["align"]
        assert record["steps"] == 2 and record["done"]


def test_the_answer_is_written_behind_the_image_tokens_and_seen_through_them_alone(folder: Path) -> None:
    batches, aligned = parts_of(folder)
    batch = batches.of([tell(5, 4, "train")], np.random.default_rng(0), 0.0, 0.0)
    assert int((batch.stories.kinds == Kind.ANSWER).sum()) > 20
    torch.manual_seed(0)  # pictures are worn at random
    one = align.losses(aligned, batch, AlignStage(answer_loss_scale=1.0))
    torch.manual_seed(0)
    three = align.losses(aligned, batch, AlignStage(answer_loss_scale=3.0))
    torch.testing.assert_close(three["loss"] - one["loss"], 2 * one["answer"])
    seen = visible(batch.stories, bottleneck=True)
    rows = (batch.stories.kinds == Kind.ANSWER)[0]
    told = (batch.stories.kinds == Kind.TEXT)[0]
    assert not seen[0][rows][:, told].any()
    without, _ = parts_of(folder, answer_loss_scale=0.0)
    batch = without.of([tell(5, 4, "train")], np.random.default_rng(0), 0.0, 0.0)
    assert not (batch.stories.kinds == Kind.ANSWER).any()
    assert "answer" not in align.losses(aligned, batch, AlignStage(answer_loss_scale=0.0))


def test_the_report_tells_distance_and_retrieval_of_validation_stories(folder: Path) -> None:
    assert align.train(tiny_config(folder, max_train_steps=1), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (report,) = [line["validation"] for line in lines if "validation" in line]
    assert report["l2"] > 0 and -1 <= report["cosine"] <= 1
    right, total = report["retrieval"]["resolved"]
    assert 0 <= right <= total and total > 5


def test_the_diffusion_loss_reaches_the_mapper_through_the_frozen_denoiser(folder: Path) -> None:
    config = tiny_config(folder, diffusion_loss_scale=1.0)
    unet = load_component(folder / "unet").requires_grad_(False)
    torch.manual_seed(0)
    loss = align.DiffusionLoss(config, folder, unet, "cpu")
    d = Dimensions(**read_checkpoint(folder)["dimensions"])
    predicted = torch.randn(2, d.text_tokens, d.cross_attention_dim, requires_grad=True)
    loss(predicted, torch.zeros(2, 3, d.image_size, d.image_size)).backward()  # type: ignore[no-untyped-call]
    assert predicted.grad is not None and predicted.grad.abs().sum() > 0
    assert align.train(config, folder)


def test_an_exchanged_character_does_what_the_other_did() -> None:
    scene = Scene("snow", (Actor("milo", "waving", "ball", "left"), Actor("luna", "sitting")), 7)
    actors = (Actor("rex", "waving", "ball", "left"), Actor("luna", "sitting"))
    assert exchange(scene, "milo", "rex") == Scene("snow", actors, 7)


def test_an_interrupted_alignment_ends_with_the_checkpoint_of_an_unbroken_one(
    folder: Path, tmp_path: Path
) -> None:
    fresh_parts(folder)
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    config = tiny_config(folder, learning_rate=0.1)
    assert align.train(config, whole)
    assert not align.train(config, folder, minutes=0) and align.train(config, folder)
    assert checkpoint_hash(folder) == checkpoint_hash(whole)


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="language_model"):
        align.train(TrainConfig(), tmp_path)


def test_two_processes_share_the_stories_of_a_step_and_go_on_where_they_stopped(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def trained(name: str, *minutes: float | None, **stage: object) -> bytes:
        out = Path(shutil.copytree(tiny_checkpoint, tmp_path / name))
        fresh_parts(out)
        config = tiny_config(out, max_train_steps=3, max_frames=2, **stage)
        for part in minutes:
            done = align.train(config, out, minutes=part)
        assert done
        return (out / "mapper" / "model.safetensors").read_bytes()

    whole = trained("whole", None, processes=2)
    assert trained("parts", 0, None, processes=2) == whole
    assert trained("alone", None, train_batch_size=2) != whole
