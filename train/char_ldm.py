"""Recipe: Char-LDM, the first stage of StoryGPT-V. Captions with named characters become frames.

The name of a character is merged with its picture, and an auxiliary loss keeps the attention of that name
inside the character's mask (specification A.2 to A.5). What differs from the published code: empty captions
are really empty, character pictures lie on white as portraits do, and the networks are our own small ones,
so the caption encoder goes on learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from storyv_lite.checkpoint import train_command
from storyv_lite.config import CharLDMStage, TrainConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling.attention import MatmulAttnProcessor, attend_plainly, attention_mask_loss
from storyv_lite.modeling.checkpoints import has_component, load_component
from storyv_lite.modeling.fusion import Fusion
from storyv_lite.modeling.schedule import (
    build_scheduler,
    snr_weights,
    spread_timesteps,
    training_target,
)
from storyv_lite.modeling.unet import build_unet
from storyv_lite.runtime.tokenizer import EncodedCaption, TextTokenizer
from storyv_lite.train import autoencoder, preview
from storyv_lite.train.conditioning import (
    Conditioner,
    ConditioningInputs,
    Pixels,
    collate,
    load_text_tokenizer,
)
from storyv_lite.train.data import FRAMES, FrameSet, training_frames
from storyv_lite.train.image_text import DETAILS, NAMES, mean_where, truth_loss, truths
from storyv_lite.train.latents import LatentSet
from storyv_lite.train.loop import helper_autocast, parameter_groups, run_stage, seed_step, step_rng
from storyv_lite.train.parallel import GradientHelpers
from storyv_lite.train.text_tokenizer import EOS
from storyv_lite.train.toonworld import captions, draw
from storyv_lite.train.toonworld.scene import PLACES

STAGE = "char_ldm"
PLAIN_CAPTION = 0.4  # least share of captions in the plain words that stage 2 aims at
READING_WEIGHT = 0.1  # of the loss of who, where, doing what, with what as read out of the conditioning
TEXT_LEARNING_RATE = 0.5  # part of the learning rate that the caption encoder learns with
MASK_SIZE = 64
MENTIONS = 3  # of characters in one caption, at most


@dataclass(frozen=True)
class Batch:
    latents: Tensor  # (B, C, h, w), normalised
    inputs: ConditioningInputs
    masks: Tensor  # (K, MASK_SIZE, MASK_SIZE) in [0,1], one per merged name
    words: Tensor  # (K, T) in {0,1}, the tokens that are to look inside that mask
    places: Tensor  # (B,)
    present: Tensor  # (B, cast), 0 or 1
    details: Tensor  # (B, cast, 3): position, action, prop of who is present
    who: Tensor  # (K,) index into the cast

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def filled_up(self, portraits: int, image_size: int) -> "Batch":
        """The same to every network, in shapes that depend on B alone.

        A caption that nobody draws is added, and to its end go names that nobody bears. Raises `ValueError`
        when a batch holds more names or pictures than there is room for.
        """
        inputs, count = self.inputs, len(self.latents)
        names, pictures = MENTIONS * count, portraits + count
        nobody = torch.full((1, inputs.input_ids.shape[1]), EOS)
        padded = ConditioningInputs(
            torch.cat([inputs.input_ids, nobody]),
            _filled_up(inputs.pixel_values.reshape(-1, 3, image_size, image_size), pictures),
            _filled_up(inputs.picture_index, names),
            _filled_up(inputs.batch_index, names, count),
            _filled_up(inputs.positions, names),
        )
        masks, words, who = (_filled_up(x, names) for x in (self.masks, self.words, self.who))
        return replace(self, inputs=padded, masks=masks, words=words, who=who)


@dataclass(frozen=True)
class Batches:
    """Batches as a pure function of the step and of whose share of it is wanted."""

    config: TrainConfig
    frames: FrameSet
    latents: LatentSet
    tokenizer: TextTokenizer
    portraits: dict[str, Pixels]

    def __call__(self, step: int, rank: int = 0) -> Batch:
        settings, shape = self.config.char_ldm, self.config.model
        rng = step_rng(self.config.seed, f"{STAGE}/{rank}", step)
        indices = rng.integers(len(self.frames), size=settings.train_batch_size // settings.processes)
        covered = self.frames.actor_masks(indices, MASK_SIZE)
        pictures = list(self.portraits.values())
        first = {name: slot for slot, name in enumerate(self.portraits)}
        room = len(pictures) + len(indices)
        tokens, chosen, masks, words = [], [], [], []
        for row, index in enumerate(indices.tolist()):
            kind = condition(rng, settings)
            clauses = self.clauses(index, rng) if kind != "empty" else [""]
            caption = ", ".join(clauses) + "." if len(clauses) > 1 else clauses[0]
            actors = {actor.name: i for i, actor in enumerate(self.frames.scenes[index].actors)}
            names = actors if kind == "characters" else {}
            encoded = self.tokenizer.encode(caption, names)
            slots = {}
            for name in dict.fromkeys(encoded.names):
                crop = None
                if rng.random() >= settings.portrait_prob and step < conditioning_steps(settings):
                    crop = self.frames.character(index, actors[name], shape.vision.image_size)
                if crop is None or len(pictures) == room:  # by chance, or it is hidden, or there are many
                    slots[name] = first[name]
                else:
                    slots[name] = len(pictures)
                    pictures.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
            tokens.append(encoded)
            chosen.append([slots[name] for name in encoded.names])
            masks += [covered[row, actors[name]] for name in encoded.names]
            words += told_by(self.tokenizer, encoded, clauses)
        inputs, scenes = collate(tokens, pictures, chosen), [self.frames.scenes[i] for i in indices]
        return Batch(
            self.latents(indices),
            inputs,
            torch.stack(masks) if masks else torch.zeros(0, MASK_SIZE, MASK_SIZE),
            torch.stack(words) if words else torch.zeros(0, inputs.input_ids.shape[1]),
            *truths(scenes),
            torch.tensor([NAMES.index(name) for one in tokens for name in one.names], dtype=torch.long),
        )

    def clauses(self, index: int, rng: np.random.Generator) -> list[str]:
        """A caption: as written it is one clause, in plain words one for each character and the place.

        A caption that leaves open where somebody stands is learned from frames in which everybody stands
        where nothing is said. Of a place left to chance a denoiser draws two, with somebody in each.
        """
        plain = captions.plain_clauses(self.frames.scenes[index], placed=True)
        if rng.random() >= PLAIN_CAPTION:
            written = self.frames.caption(index, rng)
            usual = plain == captions.plain_clauses(self.frames.scenes[index], placed=False)
            if usual or captions.says_position(written):
                return [written]
        return plain


class Reader(nn.Module):
    """Reads out of the conditioning what the caption tells; learns beside the encoder and is not kept.

    In plain words every word of a clause must know of whom it is, and the last one all that is told of that
    character; the end token of any caption must know the whole scene. Without it, words that a denoiser
    needs late, such as left and right, stay nearly the same to it.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.name = nn.Linear(hidden_size, len(NAMES))
        self.details = nn.Linear(hidden_size, sum(DETAILS))
        self.truth = nn.Linear(hidden_size, len(PLACES) + len(NAMES) * (1 + sum(DETAILS)))

    def forward(self, conditioning: Tensor, batch: Batch) -> Tensor:
        """The sum of all cross-entropies for conditioning (B,T,C)."""
        inputs, everyone = batch.inputs, len(batch.latents)
        ids, rows = inputs.input_ids[:everyone], torch.arange(everyone, device=conditioning.device)
        end = conditioning[rows, (ids == EOS).int().argmax(1)]
        told = (ids[:, 1] != EOS).float()  # captions that are not empty
        truth, _ = truth_loss(self.truth(end).float(), batch.places, batch.present, batch.details, told)
        plain = (batch.words.sum(1) > 1).float()
        names = self.name(conditioning).float()[inputs.batch_index]  # (K, T, cast)
        who = batch.who[:, None].expand(names.shape[:2])
        named = F.cross_entropy(names.flatten(0, 1), who.flatten(), reduction="none").view_as(batch.words)
        loss = truth + mean_where(named, batch.words * plain[:, None])
        last = batch.words.shape[1] - 1 - batch.words.flip(1).argmax(1)
        read = self.details(conditioning[inputs.batch_index, last]).float().split(DETAILS, dim=-1)
        right = batch.details[inputs.batch_index.clamp(max=everyone - 1), batch.who]
        for detail, scores in enumerate(read):
            wrong = F.cross_entropy(scores, right[:, detail], reduction="none")
            loss = loss + mean_where(wrong, plain)
        return loss


@dataclass(frozen=True)
class Objective:
    """The losses of one batch (specification A.4)."""

    settings: CharLDMStage
    conditioner: Conditioner
    reader: Reader | None  # None where the conditioning does not learn
    unet: nn.Module
    scheduler: DDPMScheduler
    recorders: Sequence[MatmulAttnProcessor]  # of the supervised cross-attentions; empty without supervision

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` to minimise; `denoising`, the plain squared error; `attention`, outside minus inside."""
        noise, count = torch.randn_like(batch.latents), len(batch.latents)
        timesteps = spread_timesteps(self.scheduler, count, self.settings.timestep_shift, noise.device)
        noisy = self.scheduler.add_noise(batch.latents, noise, timesteps)
        conditioning = self.conditioner(batch.inputs)
        predicted = self.unet(noisy, timesteps, conditioning[:count]).sample.float()
        target = training_target(self.scheduler, batch.latents, noise, timesteps)
        if self.settings.mask_loss_prob:
            everywhere = torch.rand((), device=noise.device) >= self.settings.mask_loss_prob
            foreground = torch.where(everywhere, 1.0, _foreground(batch, predicted.shape[-1]))
            predicted, target = predicted * foreground, target * foreground
        error = (predicted - target).square().mean((1, 2, 3))
        losses = {"denoising": error.mean().detach()}
        if self.settings.snr_gamma:
            error = error * snr_weights(self.scheduler, timesteps, self.settings.snr_gamma)
        loss = error.mean()
        if self.recorders:
            looked = [r.probabilities for r in self.recorders if r.probabilities is not None]
            inputs = batch.inputs
            attention = attention_mask_loss(looked, batch.masks, inputs.batch_index, batch.words)
            loss, losses["attention"] = loss + self.settings.reg_weight * attention, attention.detach()
        if self.reader is not None:
            reading = self.reader(conditioning, batch)
            loss, losses["reading"] = loss + READING_WEIGHT * reading, reading.detach()
        return {"loss": loss, **losses}


def told_by(tokenizer: TextTokenizer, encoded: EncodedCaption, clauses: Sequence[str]) -> list[Tensor]:
    """Tokens (T,) in {0,1} that tell of each merged name: its clause in plain words, else the name alone."""
    words = torch.zeros(len(encoded.names), encoded.ids.shape[1])
    if len(clauses) == 1:
        words[torch.arange(len(words)), torch.from_numpy(encoded.positions)] = 1
        return list(words)
    begin = 1
    for row, stop in zip(words, range(1, len(clauses)), strict=False):
        end = tokenizer.count(", ".join(clauses[:stop])) - 1
        row[begin:end] = 1
        begin = end + 1  # past the comma
    return list(words)


def condition(rng: np.random.Generator, settings: CharLDMStage) -> str:
    """What one sample is conditioned on: "empty" (nothing), "text" or "characters"."""
    draw = rng.random()
    if draw < settings.uncondition_prob:
        return "empty"
    return "text" if draw < settings.uncondition_prob + settings.text_only_prob else "characters"


def conditioning_steps(settings: CharLDMStage) -> int:
    """Steps in which encoders and fusion learn; in the rest of them the UNet learns alone, a third faster."""
    return int(settings.conditioning_ratio * settings.max_train_steps)


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train `unet`, `fusion`, `character_encoder` and `text_encoder` in `out`; true when complete.

    Raises `BundleError` when the autoencoder or the encoders have not been trained yet.
    """
    settings, shape = config.char_ldm, config.model
    torch.manual_seed(config.seed)
    vae = autoencoder.load(out, device)
    autoencoder.refuse_unmeasured(vae, out)
    tokenizer = load_text_tokenizer(out, shape.text.max_position_embeddings)
    conditioner = _build_conditioner(config, out)
    for encoder in (conditioner.text_encoder, conditioner.character_encoder):
        encoder.set_attn_implementation("eager")  # type: ignore[operator]
    unet = build_unet(shape.unet, shape.autoencoder.latent_channels, shape.text.hidden_size)
    scheduler = build_scheduler(shape.unet)
    scheduler.save_pretrained(out / "scheduler")
    frames = training_frames(config, out, device)
    latents = LatentSet.open_or_make(out / "state" / "latents-train", frames, out / FRAMES, vae)
    if device != "cpu":  # who makes batches there must not touch the device
        latents.encode_all()
    portraits = {name: draw.portrait(name, shape.vision.image_size) for name in NAMES}
    batches = Batches(config, frames, latents, tokenizer, portraits)
    recorders = attend_plainly(unet.to(device), record=settings.reg_weight > 0)
    encoder_steps = conditioning_steps(settings)
    reader = Reader(shape.text.hidden_size) if settings.train_text_encoder and encoder_steps else None
    objective = Objective(settings, conditioner, reader, unet, scheduler, recorders)
    components = {"unet": unet, **vars(conditioner)}
    extras = {"reader": reader} if reader is not None else {}
    teaching = [*vars(conditioner).values(), *extras.values()]
    taught = [p for module in teaching for p in module.parameters() if p.requires_grad]

    def teach(step: int) -> None:
        for parameter in taught:
            parameter.requires_grad_(step < encoder_steps)

    def work(step: int, rank: int) -> Tensor:
        teach(step)
        seed_step(config.seed, f"{STAGE}/{rank}", step)
        with helper_autocast(settings):
            return objective(batches(step, rank))["loss"]

    helpers = GradientHelpers(STAGE, settings.processes, [*components.values(), *extras.values()], work)

    def own_batch(step: int) -> Batch:
        helpers.start(step)
        batch = batches(step)
        return batch if device == "cpu" else batch.filled_up(len(portraits), shape.vision.image_size)

    def compute_loss(batch: Batch, step: int) -> dict[str, Tensor]:
        teach(step)
        losses = objective(batch.to(device))
        return {**losses, "loss": helpers.finish(losses["loss"])}

    learned: list[nn.Module] = [unet, conditioner.fusion, conditioner.character_encoder, *extras.values()]
    groups = parameter_groups(learned, settings.weight_decay)
    groups += parameter_groups([conditioner.text_encoder], settings.weight_decay, TEXT_LEARNING_RATE)
    with helpers:
        return run_stage(
            STAGE,
            settings,
            components,
            own_batch,
            compute_loss,
            out,
            seed=config.seed,
            device=device,
            minutes=minutes,
            extras=extras,
            groups=groups,
            sample=lambda path: preview.draw_sheet(
                preview.CAPTIONS, portraits, conditioner, unet, vae, tokenizer, scheduler, config, path
            ),
            phase=lambda step: step < encoder_steps,
        ).done


def _build_conditioner(config: TrainConfig, out: Path) -> Conditioner:
    """Encoders as earlier stages left them; of the character encoder only the last layers learn."""
    settings = config.char_ldm
    names, rest = ("text_encoder", "character_encoder", "fusion"), not conditioning_steps(settings)
    for name in names if rest else ("text_encoder", "vision_encoder"):
        if not has_component(out / name):
            stage = STAGE if rest else "image_text"
            raise BundleError(f"`{out / name}` is missing", hint=train_command(out, stage))
    if rest:
        return Conditioner(*(load_component(out / name).requires_grad_(False) for name in names))
    text_encoder = load_component(out / "text_encoder").requires_grad_(settings.train_text_encoder)
    character_encoder = load_component(out / "vision_encoder").requires_grad_(False)
    layers: nn.ModuleList = character_encoder.vision_model.encoder.layers  # type: ignore[assignment, union-attr]
    for layer in list(layers)[len(layers) - settings.trainable_vision_layers :]:
        layer.requires_grad_(True)
    return Conditioner(text_encoder, character_encoder, Fusion(config.model.text.hidden_size))


def _foreground(batch: Batch, size: int) -> Tensor:
    """Where the named characters of each sample are: (B, 1, size, size) in [0,1]."""
    union = batch.masks.new_zeros(len(batch.latents), MASK_SIZE, MASK_SIZE)
    rows = batch.inputs.batch_index.clamp(max=len(batch.latents) - 1)
    union = union.index_add(0, rows, batch.masks).clamp(max=1)
    return F.interpolate(union[:, None], size=(size, size), mode="bilinear", align_corners=False)


def _filled_up(values: Tensor, length: int, value: int = 0) -> Tensor:
    """`values` (n, ...) with `value` behind them, (length, ...)."""
    if len(values) > length:
        raise ValueError(f"{len(values)} names or pictures in a batch with room for {length}")
    return torch.cat([values, values.new_full((length - len(values), *values.shape[1:]), value)])
