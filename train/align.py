"""Recipe: stage 2 of StoryGPT-V. The language model's [IMG] states become what Char-LDM is conditioned on.

Inputs are stories with references and their true pictures; the target of every frame is the fused embedding
of its plain caption (specification C.3, first trainer: L2 norm per token, plus cross-entropy), told
apart from the other targets of the batch. Behind its [IMG] tokens the language model goes on writing that
caption, which it sees through them alone: who is meant is one word there, and a small part of an embedding.
All frames of a story are targets of one pass. The paper freezes
its 7B model; ours is small and learns on, which `model.language.trainable` says. What differs besides:
pictures are sometimes noisy, wrong or missing, because the runtime feeds back its own, and long stories are
sometimes read in the reduced context of bounded memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from storyv_lite.checkpoint import read_json, train_command
from storyv_lite.config import AlignStage, TrainConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling.attention import attend_plainly
from storyv_lite.modeling.checkpoints import has_component, load_component, save_component
from storyv_lite.modeling.mapper import Mapper
from storyv_lite.modeling.packing import IGNORED, PackedFrame, PackedStories, Vocabulary, collate, pack
from storyv_lite.modeling.schedule import build_scheduler, training_target
from storyv_lite.modeling.story_lm import StoryLM, VisualProjection, attend_in_chunks
from storyv_lite.prompt import history, query, text_history
from storyv_lite.runtime.tokenizer import TextTokenizer
from storyv_lite.train import autoencoder
from storyv_lite.train.alignment import Aligned, alignment, pooled_pictures
from storyv_lite.train.conditioning import (
    Conditioner,
    ConditioningInputs,
    Pixels,
    load_text_tokenizer,
    pixel_values,
    with_portraits,
)
from storyv_lite.train.language_tokenizer import PAD, load_language_tokenizer, vocabulary_of
from storyv_lite.train.loop import (
    append_metrics,
    helper_autocast,
    parameter_groups,
    run_stage,
    seed_step,
    step_rng,
)
from storyv_lite.train.parallel import GradientHelpers
from storyv_lite.train.story_lm import answered
from storyv_lite.train.telling import Telling, story_length, tell, told, window
from storyv_lite.train.toonworld import draw
from storyv_lite.train.toonworld.cast import CAST

STAGE = "align"
ORIGINAL_CAPTION = 0.3  # share of captions that leave nothing out
END_WEIGHT = 0.25  # of each end token that fills a caption up, beside its words
LANGUAGE_LEARNING_RATE = 0.3  # part of the learning rate for a language model that has already learned
NO_PICTURE, WRONG_PICTURE = 0.1, 0.05  # shares of pictures that are missing, or another frame's
PICTURE_NOISE = 0.2  # most noise on a picture's vector, in its own spread
CONTRAST_SHARPNESS = 20.0  # inverse temperature
LONG_FROM = 0.4  # part of the steps after which stories have their full length
LAST, LONG = 0.75, 16  # part of the steps after which every story is long; its beginning is a short one


@dataclass(frozen=True)
class Batch:
    """Stories, the pictures in their slots, and for every target what it is to become."""

    stories: PackedStories
    pixels: Tensor  # (pictures, 3, S, S) as the vision encoder reads them
    targets: ConditioningInputs
    frames: Tensor  # (targets, 3, image, image) in [-1,1], empty without the diffusion loss

    def to(self, device: torch.device | str) -> "Batch":
        place = torch.device(device)
        return Batch(*(getattr(self, name).to(place) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Batches:
    """Batches as a pure function of step and process; of `train_batch_size` frames each has its share.

    A story is never cut: a process reads one at least, even if it is longer than its share.
    """

    config: TrainConfig
    vocabulary: Vocabulary
    tokenizer: TextTokenizer
    portraits: dict[str, Pixels]

    def __call__(self, step: int, rank: int = 0) -> Batch:
        settings = self.config.align
        rng = step_rng(self.config.seed, _share(rank), step)
        grown = min(1.0, 0.2 + step / max(1.0, LONG_FROM * settings.max_train_steps))
        longest = settings.min_frames + (settings.max_frames - settings.min_frames) * grown
        last = step >= LAST * settings.max_train_steps
        shortest = max(settings.min_frames, min(LONG, settings.max_frames) if last else 0)
        frames = story_length(rng, shortest, longest)
        share = settings.train_batch_size // settings.processes
        count = max(1, share // min(frames, settings.context_frames))
        tellings = [tell(int(rng.integers(2**30)), frames, "train") for _ in range(count)]
        return self.of(tellings, rng, ORIGINAL_CAPTION, settings.drop_prob)

    def of(
        self, tellings: list[Telling], rng: np.random.Generator, original_prob: float, drop_prob: float
    ) -> Batch:
        """One batch of these stories."""
        shape, drawn = self.config.model, self.config.align.diffusion_loss_scale > 0
        pictured = self.config.align.context == "interleaved"
        stories, pictures, answers, frames = [], [], [], []
        for telling in tellings:
            kept = window(telling.names, telling.placed, rng, drop_prob, self.config.align.context_frames)
            packed = []
            for frame, target in kept:
                caption, answer = told(telling, frame, rng, original_prob)
                finished = history(caption) if pictured else text_history(caption)
                past = finished if frame < len(telling) - 1 else None
                words = f" {answer}" if target and self.config.align.answer_loss_scale else ""
                packed.append(PackedFrame(query(caption) if target else None, past, words))
                if past is not None and pictured:
                    pictures.append(draw.render(telling.scenes[frame], shape.vision.image_size).image)
                if target:
                    answers.append(self.tokenizer.encode(answer, self.portraits))
                if target and drawn:
                    frames.append(draw.render(telling.scenes[frame], shape.image_size).image)
            stories.append(pack(packed, self.vocabulary))
        targets = with_portraits(answers, self.portraits)
        return Batch(collate(stories, PAD), pixel_values(pictures), targets, pixel_values(frames))


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train `mapper`, `visual_projection` and the language model (or its [IMG] rows); true when done.

    Raises `BundleError` when an earlier stage has not been trained yet.
    """
    settings, shape = config.align, config.model
    needed = ["language_model", "text_encoder", "character_encoder", "fusion", "vision_encoder"]
    if settings.diffusion_loss_scale:
        needed.append("unet")
    for name in needed:
        if not has_component(out / name):
            raise BundleError(f"`{out / name}` is missing", hint=train_command(out))
    torch.manual_seed(config.seed)
    frozen = {name: load_component(out / name).requires_grad_(False).to(device) for name in needed[1:]}
    conditioner = Conditioner(*(frozen[name] for name in needed[1:4]))
    lm, mapper = build(config, out, frozen["vision_encoder"], frozen["text_encoder"], device)
    vocabulary = vocabulary_of(load_language_tokenizer(out), shape.language, lm.language_model.config)
    tokenizer = load_text_tokenizer(out, shape.text.max_position_embeddings)
    portraits = {who.name: draw.portrait(who.name, shape.vision.image_size) for who in CAST}
    batches = Batches(config, vocabulary, tokenizer, portraits)
    aligned = Aligned(lm, mapper, conditioner, frozen["vision_encoder"], tokenizer, portraits)
    denoising = DiffusionLoss(config, out, frozen["unet"], device) if settings.diffusion_loss_scale else None

    visual = lm.visual_projection
    assert visual is not None
    learned: dict[str, nn.Module] = {"mapper": mapper, "visual_projection": visual}
    groups = parameter_groups([*learned.values(), lm.image_rows], settings.weight_decay)
    if shape.language.trainable:
        learned["language_model"] = lm.language_model
        groups += parameter_groups([lm.language_model], settings.weight_decay, LANGUAGE_LEARNING_RATE)
    extras = {"image_rows": lm.image_rows}

    def work(step: int, rank: int) -> Tensor:
        seed_step(config.seed, _share(rank), step)
        with helper_autocast(settings):
            return losses(aligned, batches(step, rank), settings, denoising)["loss"]

    helpers = GradientHelpers(STAGE, settings.processes, [*learned.values(), *extras.values()], work)

    def own_batch(step: int) -> Batch:
        if settings.processes > 1:  # all of them read the same rows
            lm.rescale_image_rows()
            helpers.start(step)
        return batches(step)

    def compute_loss(batch: Batch, step: int) -> dict[str, Tensor]:
        if settings.processes == 1:
            lm.rescale_image_rows()
        parts = losses(aligned, batch.to(device), settings, denoising)
        return {**parts, "loss": helpers.finish(parts["loss"])}

    def sample(path: Path) -> None:
        report = alignment(aligned, batches.of, settings.validation_stories, config.seed, device)
        step = int(path.stem.rpartition("-")[2])
        append_metrics(out, {"stage": STAGE, "step": step, "validation": report})

    with helpers:
        progress = run_stage(
            STAGE,
            settings,
            learned,
            own_batch,
            compute_loss,
            out,
            seed=config.seed,
            device=device,
            minutes=minutes,
            extras=extras,
            groups=groups,
            sample=sample,
        )
    if not shape.language.trainable:  # a frozen model is written once, with the rows it got
        save_component(lm.language_model, out / "language_model")
    return progress.done


def _share(rank: int) -> str:
    """What the generators of one process are called; the first one's are those of a training alone."""
    return f"{STAGE}/{rank}" if rank else STAGE


def losses(
    aligned: Aligned, batch: Batch, settings: AlignStage, denoising: "DiffusionLoss | None" = None
) -> dict[str, Tensor]:
    """The weighted sum `loss` and its parts, unweighted."""
    lm = aligned.lm
    with torch.no_grad():
        pooled = worn(pooled_pictures(aligned.vision_encoder, batch.pixels))
        target = aligned.conditioner(batch.targets).float()
    hidden = lm(batch.stories, pooled, bottleneck=True)
    predicted = aligned.mapper(lm.image_states(hidden, batch.stories)).float()
    weights = token_weights(batch.targets.input_ids)
    answers = answered(batch.stories)[batch.stories.labels != IGNORED]
    language = lm.language_loss(hidden, batch.stories)
    parts = {
        "alignment": ((predicted - target).norm(dim=-1) * weights).sum(1).mean(),
        "language": language[~answers].mean(),
    }
    loss = settings.gen_loss_scale * parts["alignment"] + settings.ce_loss_scale * parts["language"]
    if settings.answer_loss_scale:
        parts["answer"] = language[answers].mean()
        loss = loss + settings.answer_loss_scale * parts["answer"]
    if settings.contrast_loss_scale:
        parts["contrast"] = contrast(predicted, target, weights)
        loss = loss + settings.contrast_loss_scale * parts["contrast"]
    if denoising is not None:
        parts["denoising"] = denoising(predicted, batch.frames)
        loss = loss + settings.diffusion_loss_scale * parts["denoising"]
    return {"loss": loss, **parts}


def token_weights(input_ids: Tensor) -> Tensor:
    """What each position of captions (N,T) weighs in the loss; the weights of a caption add up to one.

    Two thirds of a caption's positions are end tokens that repeat one another: its words count for more.
    """
    ends = input_ids == input_ids[:, -1:]
    repeated = ends & ends.roll(1, dims=1)
    weights = torch.where(repeated, END_WEIGHT, 1.0)
    return weights / weights.sum(1, keepdim=True)


def contrast(predicted: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """How badly each prediction (N,T,C) finds its own target among those of the batch: cross-entropy.

    What all captions share is most of an embedding and is taken off first: who is shown is the rest.
    """
    shared = target.mean(0)
    scale = weights.sqrt()[..., None]
    mine, theirs = (
        nn.functional.normalize(((x - shared) * scale).flatten(1), dim=1) for x in (predicted, target)
    )
    own = torch.arange(len(mine), device=mine.device)
    return nn.functional.cross_entropy(CONTRAST_SHARPNESS * mine @ theirs.T, own)


def build(
    config: TrainConfig, out: Path, vision_encoder: nn.Module, text_encoder: nn.Module, device: str = "cpu"
) -> tuple[StoryLM, Mapper]:
    """The language model of the checkpoint with a fresh visual projection, and a fresh mapper.

    A projection that is stored already tells the norm: the table has learned on since it was fresh.
    """
    shape = config.model
    model = load_component(out / "language_model").requires_grad_(shape.language.trainable)
    if device == "cpu" and not shape.language.pretrained:  # a pretrained one may cap or drop scores
        attend_in_chunks(model)
    table = model.get_input_embeddings().weight.detach()  # type: ignore[operator]
    begun = has_component(out / "visual_projection")
    stored = read_json(out / "visual_projection" / "config.json") if begun else {}
    visual = VisualProjection(
        vision_hidden_size=vision_encoder.config.hidden_size,  # type: ignore[union-attr]
        visual_tokens=shape.language.visual_tokens,
        hidden_size=table.shape[1],
        norm=stored.get("norm", float(table.norm(dim=-1).mean())),
    )
    mapper = Mapper(
        hidden_size_in=table.shape[1],
        hidden_size=shape.mapper.hidden_size,
        layers=shape.mapper.num_hidden_layers,
        heads=shape.mapper.num_attention_heads,
        intermediate_size=shape.mapper.intermediate_size,
        image_tokens=shape.language.image_tokens,
        text_tokens=shape.text.max_position_embeddings,
        cross_attention_dim=text_encoder.config.hidden_size,  # type: ignore[union-attr]
    )
    return StoryLM(model, shape.language.image_tokens, visual).to(device), mapper


def worn(pooled: Tensor) -> Tensor:
    """Pictures' vectors (N, C) as a runtime with its own pictures might see them: noisy, wrong or missing."""
    if not (count := len(pooled)):
        return pooled
    noise = PICTURE_NOISE * torch.rand(count, 1, device=pooled.device) * pooled.std()
    seen = pooled + noise * torch.randn_like(pooled)
    fate = torch.rand(count, 1, device=pooled.device)
    seen = torch.where(fate < WRONG_PICTURE, seen[torch.randperm(count, device=pooled.device)], seen)
    return torch.where(fate > 1 - NO_PICTURE, torch.zeros_like(seen), seen)


class DiffusionLoss:
    """The objective of the published second trainer: what the frozen denoiser makes of the embedding."""

    def __init__(self, config: TrainConfig, out: Path, unet: nn.Module, device: str) -> None:
        self.unet, self.vae = unet, autoencoder.load(out, device)
        attend_plainly(unet)
        self.scheduler = build_scheduler(config.model.unet)

    def __call__(self, predicted: Tensor, frames: Tensor) -> Tensor:
        """Mean squared error for conditioning (N,T,C) and its frames (N,3,S,S) in [-1,1] (spec H 26)."""
        with torch.no_grad():
            latents = self.vae.normalize(self.vae.encode(frames).latent_dist.mode().float())
        noise = torch.randn_like(latents)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(steps, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        answer: Tensor = self.unet(noisy, timesteps, predicted).sample.float()
        return (answer - training_target(self.scheduler, latents, noise, timesteps)).square().mean()
