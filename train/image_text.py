"""Recipe: the caption encoder and the picture encoder, together, as CLIP is trained.

Frames and their captions must find each other in a batch (symmetric InfoNCE); single characters cut out of
frames must find their name or description among the cast's; and a linear head must read the truth about a
frame (who, where, doing what, holding what) out of the picture's pooled vector, because later a linear layer
is all that stands between that vector and the language model.
Leaves the caption encoder, the picture encoder and the character encoder (a copy) in the checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from storyv_lite.config import ModelConfig, TrainConfig
from storyv_lite.modeling.checkpoints import save_component
from storyv_lite.modeling.published import from_pretrained
from storyv_lite.runtime.tokenizer import TextTokenizer
from storyv_lite.train.data import FrameSet, Pixels, as_pictures, resize, training_frames
from storyv_lite.train.loop import run_stage, step_rng
from storyv_lite.train.text_tokenizer import BOS, EOS, TOKENIZER_FILE, save_text_tokenizer
from storyv_lite.train.toonworld import draw
from storyv_lite.train.toonworld.cast import CAST
from storyv_lite.train.toonworld.scene import ACTIONS, PLACES, POSITIONS, PROPS, Scene

STAGE = "image_text"
CHARACTER_SHARE = 0.25  # of a batch's pictures are single characters
PORTRAIT_SHARE = 0.2  # of the single characters are portraits
NAMES = [member.name for member in CAST]
DETAILS = [len(POSITIONS), len(ACTIONS), len(PROPS) + 1]  # of one character; the last prop is none


@dataclass(frozen=True)
class Batch:
    """B frames with captions and truths, K characters to be found among one description per cast member."""

    pixel_values: Tensor  # (B + K, 3, S, S)
    input_ids: Tensor  # (B + cast, T)
    places: Tensor  # (B,)
    present: Tensor  # (B, cast), 0 or 1
    details: Tensor  # (B, cast, 3): position, action, prop of who is present
    characters: Tensor  # (K,) index into the cast


class Heads(nn.Module):
    """What learns beside the encoders and is not kept: the temperature and the reader of truths."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.5))  # log of the inverse temperature
        self.truth = nn.Linear(hidden_size, len(PLACES) + len(NAMES) * (1 + sum(DETAILS)))


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train into `out/text_encoder` and `out/vision_encoder`; true when the stage is complete."""
    settings, shape = config.image_text, config.model
    save_text_tokenizer(shape.text, config.seed, out)
    if shape.text.pretrained:
        _take_pretrained(shape, out)
        return True
    tokenizer = TextTokenizer(out / TOKENIZER_FILE, shape.text.max_position_embeddings)
    frames = training_frames(config, out, device)
    torch.manual_seed(config.seed)
    text_encoder, vision_encoder = build_text_encoder(shape), build_vision_encoder(shape)
    heads = Heads(shape.vision.hidden_size)
    portraits = [draw.portrait(name, shape.vision.image_size) for name in NAMES]

    def batches(step: int) -> Batch:
        rng = step_rng(config.seed, STAGE, step)
        return make_batch(
            frames, tokenizer, portraits, settings.train_batch_size, shape.vision.image_size, rng
        )

    def compute_loss(batch: Batch, step: int) -> dict[str, Tensor]:
        batch = Batch(*(tensor.to(device) for tensor in vars(batch).values()))
        count, scale = len(batch.places), heads.scale.exp().clamp(max=100)
        pooled = vision_encoder.vision_model(pixel_values=disturbed(batch.pixel_values)).pooler_output
        embeds = vision_encoder.visual_projection(pooled)
        read = text_encoder(input_ids=batch.input_ids).pooler_output
        pictures, texts = (F.normalize(states.float(), dim=-1) for states in (embeds, read))
        similar = scale * pictures[:count] @ texts[:count].T
        own = torch.arange(count, device=similar.device)
        contrast = (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2
        who = scale * pictures[count:] @ texts[count:].T
        character = F.cross_entropy(who, batch.characters)
        truth, known = truth_loss(
            heads.truth(pooled[:count]).float(), batch.places, batch.present, batch.details
        )
        return {
            "loss": contrast + character + truth,
            "contrast": contrast.detach(),
            "character": character.detach(),
            "truth": truth.detach(),
            "found": (similar.argmax(1) == own).float().mean(),
            "known": known,
            "recognised": (who.argmax(1) == batch.characters).float().mean(),
        }

    return run_stage(
        STAGE,
        settings,
        {"text_encoder": text_encoder, "vision_encoder": vision_encoder},
        batches,
        compute_loss,
        out,
        seed=config.seed,
        device=device,
        minutes=minutes,
        extras={"heads": heads},
        finish=lambda: save_component(vision_encoder, out / "character_encoder"),
    ).done


def build_text_encoder(shape: ModelConfig) -> CLIPTextModel:
    text = shape.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            projection_dim=text.hidden_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            max_position_embeddings=text.max_position_embeddings,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=EOS,
        )
    )


def build_vision_encoder(shape: ModelConfig) -> CLIPVisionModelWithProjection:
    vision = shape.vision
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            projection_dim=shape.text.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
        )
    )


def make_batch(
    frames: FrameSet,
    tokenizer: TextTokenizer,
    portraits: list[Pixels],
    batch_size: int,
    size: int,
    rng: np.random.Generator,
) -> Batch:
    """`batch_size` pictures of which a share are single characters; everything is drawn from `rng`."""
    alone = max(1, int(CHARACTER_SHARE * batch_size))
    indices = rng.integers(len(frames), size=batch_size - alone)
    frames.fill(indices)
    pictures = [resize(frames.pixels[index], size) for index in indices]
    captions = [frames.caption(int(index), rng) for index in indices]
    characters = []
    for _ in range(alone):
        who, picture = _character(frames, portraits, size, rng)
        characters.append(who)
        pictures.append(picture)
    captions += [rng.choice([m.name, f"{m.name} the {m.kind}", m.description, f"the {m.kind}"]) for m in CAST]
    encoded = np.concatenate([tokenizer.encode(caption).ids for caption in captions])
    longest = int((encoded != EOS).sum(1).max()) + 1  # one end token; more padding would only cost time
    pixels = as_pictures(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    places, present, details = truths([frames.scenes[index] for index in indices])
    ids = torch.from_numpy(encoded[:, :longest])
    return Batch(pixels, ids, places, present, details, torch.tensor(characters))


def truths(scenes: list[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """Place (B,), presence (B, cast) and position, action and prop (B, cast, 3) of each scene."""
    places = torch.tensor([PLACES.index(scene.place) for scene in scenes])
    present = torch.zeros(len(scenes), len(NAMES))
    details = torch.zeros(len(scenes), len(NAMES), len(DETAILS), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for actor in scene.actors:
            who = NAMES.index(actor.name)
            prop = PROPS.index(actor.prop) if actor.prop else len(PROPS)
            present[row, who] = 1
            details[row, who] = torch.tensor(
                [POSITIONS.index(actor.position), ACTIONS.index(actor.action), prop]
            )
    return places, present, details


def truth_loss(
    logits: Tensor, places: Tensor, present: Tensor, details: Tensor, told: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of everything true about scenes (see `truths`), and the share of details read right.

    With `told` (B,) in {0,1} only of the scenes that it marks.
    """
    told = torch.ones_like(present[:, 0]) if told is None else told
    place, rest = logits[:, : len(PLACES)], logits[:, len(PLACES) :].view(len(logits), len(NAMES), -1)
    loss = mean_where(F.cross_entropy(place, places, reduction="none"), told)
    absent = F.binary_cross_entropy_with_logits(rest[..., 0], present, reduction="none")
    loss, here, right = loss + mean_where(absent.mean(1), told), present * told[:, None], []
    for detail, scores in enumerate(torch.split(rest[..., 1:], DETAILS, dim=-1)):
        true = details[..., detail]
        wrong = F.cross_entropy(scores.flatten(0, 1), true.flatten(), reduction="none").view_as(here)
        loss = loss + mean_where(wrong, here)
        right.append(mean_where((scores.argmax(-1) == true).float(), here))
    return loss, torch.stack(right).mean()


def mean_where(values: Tensor, here: Tensor) -> Tensor:
    """The mean of `values` where `here`, of the same shape and in {0,1}; zero where that is nowhere."""
    return (values * here).sum() / here.sum().clamp(min=1)


def disturbed(pixels: Tensor) -> Tensor:
    """Pictures as a model draws them: now and then softer, lighter or darker, a little noisy."""
    count, size = len(pixels), pixels.shape[-1]
    soft = F.interpolate(F.avg_pool2d(pixels, 2), size=size, mode="bilinear", align_corners=False)
    share = (torch.rand(count, 1, 1, 1, device=pixels.device) * 2 - 1).clamp(min=0)
    light = 1 + 0.1 * torch.randn(count, 1, 1, 1, device=pixels.device)
    return (pixels + share * (soft - pixels)) * light + 0.03 * torch.randn_like(pixels)


def _character(
    frames: FrameSet, portraits: list[Pixels], size: int, rng: np.random.Generator
) -> tuple[int, Pixels]:
    """One cast member and a picture of it alone on white."""
    if rng.random() >= PORTRAIT_SHARE:
        for _ in range(8):
            index = int(rng.integers(len(frames)))
            actor = int(rng.integers(len(frames.scenes[index].actors)))
            if (picture := frames.character(index, actor, size)) is not None:
                return NAMES.index(frames.scenes[index].actors[actor].name), picture
    who = int(rng.integers(len(NAMES)))
    return who, portraits[who]


def _take_pretrained(shape: ModelConfig, out: Path) -> None:
    """Published encoders, the pixels' statistics inside; both copies of the picture encoder begin equal."""
    text_encoder = from_pretrained(
        CLIPTextModel, shape.text.pretrained, "model.text.pretrained", subfolder="text_encoder"
    )
    save_component(text_encoder, out / "text_encoder")
    vision_encoder = from_pretrained(
        CLIPVisionModelWithProjection, shape.vision.pretrained, "model.vision.pretrained"
    )
    fold_pixel_statistics(vision_encoder, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    for name in ("vision_encoder", "character_encoder"):
        save_component(vision_encoder, out / name)


@torch.no_grad()
def fold_pixel_statistics(
    encoder: CLIPVisionModelWithProjection, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Let an encoder of (pixels - mean) / std, with pixels in [0, 1], read pixels in [-1, 1] as ours do.

    Patches do not overlap an edge, so what a shift adds to a patch is one vector, the same for all.
    """
    embeddings = encoder.vision_model.embeddings
    weight, positions = embeddings.patch_embedding.weight, embeddings.position_embedding.weight
    spread = weight.new_tensor(std)
    shift = (0.5 - weight.new_tensor(mean)) / spread
    positions[1:] += torch.einsum("ochw,c->o", weight, shift)  # the first position is no patch
    weight.mul_(0.5 / spread[:, None, None])
