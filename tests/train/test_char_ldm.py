"""Stage 1: what a batch holds, what is conditioned on what, and that a step learns."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from storyv_lite.config import CharLDMStage, TrainConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling.attention import attend_plainly
from storyv_lite.modeling.autoencoder import PretrainedAutoencoder, ToonAutoencoder
from storyv_lite.modeling.checkpoints import load_component, save_component
from storyv_lite.modeling.fusion import Fusion
from storyv_lite.modeling.schedule import build_scheduler
from storyv_lite.modeling.unet import build_unet
from storyv_lite.presets import load_config
from storyv_lite.train import autoencoder, char_ldm, graphs, image_text, preview
from storyv_lite.train.conditioning import Conditioner, load_text_tokenizer, with_portraits
from storyv_lite.train.data import FrameSet
from storyv_lite.train.image_text import NAMES
from storyv_lite.train.latents import LatentSet
from storyv_lite.train.toonworld import captions, draw
from storyv_lite.train.toonworld.corpus import text_corpus


def micro(**settings: object) -> TrainConfig:
    config = load_config("micro")
    return replace(config, char_ldm=replace(config.char_ldm, **settings))  # type: ignore[arg-type]


def write_earlier_stages(out: Path, config: TrainConfig) -> Path:
    """What `char_ldm` finds in a checkpoint folder, untrained."""
    torch.manual_seed(0)
    shape = config.model
    vae = ToonAutoencoder(
        latent_channels=shape.autoencoder.latent_channels,
        block_out_channels=shape.autoencoder.block_out_channels,
        layers_per_block=shape.autoencoder.layers_per_block,
        patch_size=shape.autoencoder.patch_size,
        scale_factor=shape.image_size // shape.unet.sample_size,
        latents_mean=(0.0,) * shape.autoencoder.latent_channels,
        latents_std=(0.2,) * shape.autoencoder.latent_channels,
    )
    save_component(vae, out / "autoencoder")
    save_component(image_text.build_text_encoder(shape), out / "text_encoder")
    save_component(image_text.build_vision_encoder(shape), out / "vision_encoder")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=shape.text.vocab_size,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(text_corpus(2000, 0), 2000), trainer)
    folder = out / "tokenizers" / "text_encoder"
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return out


def batches_of(config: TrainConfig, out: Path) -> char_ldm.Batches:
    folder = out / "state" / "frames-train"
    frames = FrameSet.open_or_make(folder, config.seed, config.data.frames, "train", config.model.image_size)
    latents = LatentSet.open_or_make(out / "state" / "latents-train", frames, folder, autoencoder.load(out))
    tokenizer = load_text_tokenizer(out, config.model.text.max_position_embeddings)
    size = config.model.vision.image_size
    portraits = {name: draw.portrait(name, size) for name in NAMES}
    return char_ldm.Batches(config, frames, latents, tokenizer, portraits)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_earlier_stages(tmp_path_factory.mktemp("checkpoint"), micro())


@pytest.fixture
def fresh(earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """New copies of the checkpoint folder, by name; sample sheets are short."""
    monkeypatch.setattr(preview, "CAPTIONS", preview.CAPTIONS[:1])
    ignored = shutil.ignore_patterns("state")
    return lambda name: Path(shutil.copytree(earlier, tmp_path / name, ignore=ignored))


def test_a_dropped_condition_is_the_empty_caption_without_characters(earlier: Path) -> None:
    batches = batches_of(micro(uncondition_prob=1.0, train_batch_size=6), earlier)
    batch = batches(0)
    empty = torch.from_numpy(batches.tokenizer.encode("").ids)
    assert torch.equal(batch.inputs.input_ids, empty.expand(6, -1))
    assert len(batch.inputs.positions) == len(batch.masks) == 0


def test_text_only_samples_keep_their_caption_and_lose_their_pictures(earlier: Path) -> None:
    batches = batches_of(micro(uncondition_prob=0.0, text_only_prob=1.0), earlier)
    batch = batches(0)
    empty = torch.from_numpy(batches.tokenizer.encode("").ids)
    assert (batch.inputs.input_ids != empty).any(1).all()
    assert len(batch.inputs.positions) == 0


def test_conditions_are_drawn_as_often_as_the_settings_say() -> None:
    rng, settings = np.random.default_rng(0), CharLDMStage()
    drawn = [char_ldm.condition(rng, settings) for _ in range(5000)]
    assert drawn.count("empty") / 5000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("text") / 5000 == pytest.approx(0.1, abs=0.02)


def test_every_named_actor_gets_a_picture_and_a_mask_at_its_name(earlier: Path) -> None:
    batches = batches_of(micro(uncondition_prob=0.0, text_only_prob=0.0, train_batch_size=8), earlier)
    batch = batches(0)
    inputs = batch.inputs
    assert set(inputs.batch_index.tolist()) == set(range(8))
    assert len(inputs.positions) == len(inputs.picture_index) == len(batch.masks)
    assert int(inputs.picture_index.max()) + 1 == len(inputs.pixel_values)
    assert float(batch.masks.flatten(1).sum(1).min()) > 0
    file = Tokenizer.from_file(str(earlier / "tokenizers" / "text_encoder" / "tokenizer.json"))
    ids = inputs.input_ids[inputs.batch_index, inputs.positions]
    words = [(file.id_to_token(token) or "").removeprefix("Ġ") for token in ids.tolist()]
    assert all(any(name.endswith(word) for name in NAMES) for word in words), words


def test_in_plain_words_all_that_tells_of_a_character_looks_inside_its_mask(earlier: Path) -> None:
    tokenizer = batches_of(micro(), earlier).tokenizer
    clauses = ["Milo running left with a ball", "Kiki waving right with still hands", "in town"]
    encoded = tokenizer.encode(", ".join(clauses) + ".", ("milo", "kiki"))
    file = Tokenizer.from_file(str(earlier / "tokenizers" / "text_encoder" / "tokenizer.json"))
    told = []
    for words in char_ldm.told_by(tokenizer, encoded, clauses):
        pieces = [file.id_to_token(piece) or "" for piece in encoded.ids[0, words.numpy() > 0].tolist()]
        told.append("".join(pieces).split("Ġ")[-6:])
    assert told == [clause.lower().split() for clause in clauses[:2]]


def test_a_caption_that_leaves_a_place_open_belongs_to_a_frame_of_the_usual_layout(earlier: Path) -> None:
    batches, rng = batches_of(micro(), earlier), np.random.default_rng(0)
    written = 0
    for index, scene in enumerate(batches.frames.scenes):
        for _ in range(12):
            clauses = batches.clauses(index, rng)
            plain = captions.plain_clauses(scene, placed=True)
            if clauses == plain:
                continue
            written += 1
            assert len(clauses) == 1
            usual = plain == captions.plain_clauses(scene, placed=False)
            assert usual or captions.says_position(clauses[0]), (scene, clauses)
    assert written > 20


def test_in_a_caption_as_written_the_name_alone_looks_inside_the_mask(earlier: Path) -> None:
    tokenizer = batches_of(micro(), earlier).tokenizer
    caption = "Milo is waving to Luna in the snow."
    encoded = tokenizer.encode(caption, ("milo", "luna"))
    words = char_ldm.told_by(tokenizer, encoded, [caption])
    assert [row.nonzero().flatten().tolist() for row in words] == [[p] for p in encoded.positions.tolist()]


def test_the_reader_asks_for_what_the_caption_tells(earlier: Path) -> None:
    """Conditioning in which every word holds the truth is read rightly, one in which all are alike is not."""
    batch = batches_of(micro(uncondition_prob=0.0, text_only_prob=0.0, train_batch_size=8), earlier)(0)
    reader = char_ldm.Reader(96)
    optimizer = torch.optim.Adam(reader.parameters(), 0.03)
    knowing = torch.zeros(*batch.inputs.input_ids.shape, 96)
    knowing[:, :, 0] = 1.0
    rows = torch.arange(8)
    knowing[rows, :, 1 + rows] = 3.0  # of which picture
    for k, (row, who) in enumerate(zip(batch.inputs.batch_index.tolist(), batch.who.tolist(), strict=True)):
        knowing[row, batch.words[k] > 0, 20 + who] = 3.0
    empty = torch.ones(1, 1, 96).expand_as(knowing)
    results = []
    for conditioning in (knowing, empty):
        for _ in range(150):
            optimizer.zero_grad()
            loss = reader(conditioning, batch)
            loss.backward()
            optimizer.step()
        results.append(float(loss.detach()))
    assert results[0] < 0.2 < 3 < results[1]


def test_the_reader_asks_nothing_of_empty_captions(earlier: Path) -> None:
    batch = batches_of(micro(uncondition_prob=1.0, train_batch_size=2), earlier)(0)
    asked = char_ldm.Reader(8)(torch.ones(*batch.inputs.input_ids.shape, 8), batch)
    assert float(asked.detach()) == 0.0


def test_a_batch_is_a_function_of_its_step(earlier: Path) -> None:
    batches = batches_of(micro(), earlier)
    once, again, other = batches(3), batches(3), batches(4)
    assert torch.equal(once.latents, again.latents)
    assert torch.equal(once.inputs.input_ids, again.inputs.input_ids)
    assert not torch.equal(once.latents, other.latents)


def test_pictures_move_only_the_tokens_of_names(earlier: Path) -> None:
    batches = batches_of(micro(), earlier)
    text, vision = (load_component(earlier / name) for name in ("text_encoder", "vision_encoder"))
    conditioner = Conditioner(text, vision, Fusion(64))
    caption = batches.tokenizer.encode("Milo is waving to Luna in the snow.", batches.portraits)
    with torch.no_grad():
        bare = conditioner(
            with_portraits([batches.tokenizer.encode("Milo is waving to Luna in the snow.")], {})
        )
        fused = conditioner(with_portraits([caption], batches.portraits))
    changed = (bare != fused).any(-1)[0].nonzero().flatten().tolist()
    assert changed == sorted(caption.positions.tolist()) and len(changed) == 2


def test_latents_are_kept_between_openings_until_the_autoencoder_changes(tmp_path: Path) -> None:
    config, four = micro(), np.arange(4)
    out = write_earlier_stages(tmp_path, config)
    kept = batches_of(config, out).latents(four)
    assert batches_of(config, out).latents.encoded[:4].all()
    assert torch.equal(batches_of(config, out).latents(four), kept)

    vae = autoencoder.load(out)
    vae.register_to_config(latents_std=[0.4] * config.model.autoencoder.latent_channels)
    save_component(vae, out / "autoencoder")
    assert not batches_of(config, out).latents.encoded.any()
    torch.testing.assert_close(batches_of(config, out).latents(four), kept / 2, atol=1e-2, rtol=1e-2)

    with torch.no_grad():
        next(vae.encoder.parameters()).add_(0.1)
    save_component(vae, out / "autoencoder")
    moved = batches_of(config, out).latents
    assert not moved.encoded.any()
    moved(four)

    with torch.no_grad():
        next(vae.decoder.parameters()).add_(0.1)  # a decoder that learned on changes no latent
    save_component(vae, out / "autoencoder")
    assert batches_of(config, out).latents.encoded.any()


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_store_every_component(fresh: Callable[[str], Path]) -> None:
    config = micro(max_train_steps=24, learning_rate=3e-3, log_steps=1, uncondition_prob=0.0, ema_decay=0.0)
    config = replace(config, data=replace(config.data, frames=4))
    out = fresh("out")
    assert char_ldm.train(config, out)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])
    for name in ("unet", "fusion", "character_encoder", "text_encoder"):
        load_component(out / name)
    assert (out / "scheduler" / "scheduler_config.json").is_file()
    assert list((out / "samples").glob("char_ldm-*.png"))


def test_only_the_last_layers_of_the_character_encoder_learn(fresh: Callable[[str], Path]) -> None:
    config = micro(trainable_vision_layers=1, max_train_steps=2)
    out = fresh("out")
    char_ldm.train(config, out)
    before, after = (load_component(out / n).state_dict() for n in ("vision_encoder", "character_encoder"))
    changed = {
        name.split("encoder.layers.")[-1][0] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {"1"}


@pytest.mark.slow
def test_the_denoiser_alone_goes_on_and_what_conditions_it_stays(fresh: Callable[[str], Path]) -> None:
    out = fresh("out")
    with pytest.raises(BundleError, match="character_encoder"):
        char_ldm.train(micro(conditioning_ratio=0.0), out)
    char_ldm.train(micro(max_train_steps=2), out)
    shutil.rmtree(out / "state" / "char_ldm")
    names = ("text_encoder", "character_encoder", "fusion", "unet")
    before = [(out / name / "model.safetensors").read_bytes() for name in names]
    assert not char_ldm.train(micro(conditioning_ratio=0.0, max_train_steps=4), out, minutes=0)
    assert char_ldm.train(micro(conditioning_ratio=0.0, max_train_steps=4), out)
    after = [(out / name / "model.safetensors").read_bytes() for name in names]
    assert after[:3] == before[:3] and after[3] != before[3]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_encoders_rest_after_their_part_of_the_steps(fresh: Callable[[str], Path], processes: int) -> None:
    config = micro(max_train_steps=4, conditioning_ratio=0.5, ema_decay=0.0, processes=processes)
    out, seen, done = fresh(f"rest-{processes}"), list[list[bytes]](), False
    names = ("text_encoder", "character_encoder", "fusion", "unet")
    while not done:
        done = char_ldm.train(config, out, minutes=0)
        seen.append([(out / name / "model.safetensors").read_bytes() for name in names])
    assert all(first != second for first, second in zip(*seen[:2], strict=True))
    assert seen[1][:3] == seen[2][:3] == seen[3][:3]
    assert seen[1][3] != seen[2][3] != seen[3][3]


def test_two_processes_share_a_batch_and_average_its_gradient(fresh: Callable[[str], Path]) -> None:
    results = []
    for name in ("once", "again"):
        out = fresh(name)
        char_ldm.train(micro(processes=2, max_train_steps=3), out)
        results.append((out / "unet" / "model.safetensors").read_bytes())
    assert results[0] == results[1]
    alone = fresh("alone")
    char_ldm.train(micro(train_batch_size=2, max_train_steps=3), alone)
    assert (alone / "unet" / "model.safetensors").read_bytes() != results[0]


def test_what_is_trained_after_two_processes_has_its_threads_again(fresh: Callable[[str], Path]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert char_ldm.train(micro(processes=2, max_train_steps=2, train_batch_size=2), fresh("threads"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_an_interrupted_training_ends_with_the_same_weights(fresh: Callable[[str], Path]) -> None:
    whole, parts = (fresh(name) for name in ("whole", "parts"))
    char_ldm.train(micro(processes=2), whole)
    assert not char_ldm.train(micro(processes=2), parts, minutes=0)
    assert char_ldm.train(micro(processes=2), parts)
    for name in ("unet", "fusion", "text_encoder"):
        weights = [(out / name / "model.safetensors").read_bytes() for out in (whole, parts)]
        assert weights[0] == weights[1]


def test_a_published_autoencoder_is_trained_on_as_it_is(fresh: Callable[[str], Path]) -> None:
    out, shape = fresh("published"), micro().model
    vae = PretrainedAutoencoder(
        latent_channels=shape.autoencoder.latent_channels, block_out_channels=(32,) * 4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    save_component(vae, out / "autoencoder")
    assert char_ldm.train(micro(max_train_steps=2), out)


def test_an_unfinished_autoencoder_is_refused_with_the_command(fresh: Callable[[str], Path]) -> None:
    out = fresh("unmeasured")
    file = out / "autoencoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "latents_mean": None}))
    with pytest.raises(BundleError, match="latents are not measured yet") as caught:
        char_ldm.train(micro(), out)
    assert "--stage autoencoder" in caught.value.hint


def test_training_without_the_earlier_stages_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing"):
        char_ldm.train(micro(), tmp_path)


def objective_of(out: Path, config: TrainConfig) -> char_ldm.Objective:
    torch.manual_seed(1)
    shape, text = config.model, load_component(out / "text_encoder")
    unet = build_unet(shape.unet, shape.autoencoder.latent_channels, shape.text.hidden_size)
    conditioner = Conditioner(text, load_component(out / "vision_encoder"), Fusion(shape.text.hidden_size))
    reader, scheduler = char_ldm.Reader(shape.text.hidden_size), build_scheduler(shape.unet)
    recorders = attend_plainly(unet, record=True)
    return char_ldm.Objective(config.char_ldm, conditioner, reader, unet, scheduler, recorders)


def filled_up(batches: char_ldm.Batches, step: int) -> char_ldm.Batch:
    return batches(step).filled_up(len(batches.portraits), batches.config.model.vision.image_size)


def test_a_batch_filled_up_has_one_shape_and_the_same_losses_and_gradients(earlier: Path) -> None:
    config = micro(train_batch_size=6, uncondition_prob=0.3)
    batches, objective = batches_of(config, earlier), objective_of(earlier, config)
    learns = [*objective.unet.parameters(), *objective.conditioner.fusion.parameters()]
    found: list[tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]] = []
    for batch in (batches(2), filled_up(batches, 2)):
        torch.manual_seed(0)
        losses = objective(batch)
        assert set(losses) == {"loss", "denoising", "attention", "reading"}
        found.append((losses, list(torch.autograd.grad(losses["loss"], learns, allow_unused=True))))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    first, second = (graphs.tensors(filled_up(batches, step)) for step in (3, 4))
    assert [x.shape for x in first] == [x.shape for x in second]


def test_a_step_on_a_filled_up_batch_reads_nothing_back(
    earlier: Path, recordable: AbstractContextManager[object]
) -> None:
    config = micro(train_batch_size=4, mask_loss_prob=0.5)
    batches, objective = batches_of(config, earlier), objective_of(earlier, config)
    objective(filled_up(batches, 0))  # the schedule comes to the device once
    batch = filled_up(batches, 1)
    with recordable:
        objective(batch)["loss"].backward()  # type: ignore[no-untyped-call]


def test_a_batch_with_more_names_than_room_is_refused(earlier: Path) -> None:
    batch = batches_of(micro(uncondition_prob=0.0, text_only_prob=0.0, train_batch_size=4), earlier)(0)
    crowded = replace(batch, who=torch.zeros(13, dtype=torch.long))
    with pytest.raises(ValueError, match="13 names"):
        crowded.filled_up(len(NAMES), 32)
