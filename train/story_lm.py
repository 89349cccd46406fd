"""Recipe: the story language model, from nothing, on the texts of stories. It learns to resolve references.

The idea: in this stage a picture is spelled out. Where a picture's visual tokens will stand, the plain
caption (captions.plain: every fact in its fixed place) stands, or nothing does; and after a frame's [IMG]
tokens, where later the picture is drawn, the model has to write that plain caption. So it knows who "she" is
before it ever sees a picture. In part of the steps the answer sees nothing but the [IMG] tokens: they learn
to carry what a mapper will read out of them in `align`.
Stories are packed (modeling/packing.py): one pass trains every frame of a story.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from storyv_lite.config import StoryLMStage, TrainConfig
from storyv_lite.modeling.checkpoints import has_component, load_component, save_component
from storyv_lite.modeling.packing import IGNORED, Kind, PackedFrame, PackedStories, collate, pack
from storyv_lite.modeling.story_lm import StoryLM, attend_in_chunks, build_language_model
from storyv_lite.prompt import Picture, Segment, Text, history, query, text_history
from storyv_lite.train.language_tokenizer import PAD, save_language_tokenizer, vocabulary_of
from storyv_lite.train.loop import append_metrics, run_stage, step_rng
from storyv_lite.train.resolution import resolution
from storyv_lite.train.telling import Telling, story_length, tell, told, window

STAGE = "story_lm"
SPELLED_PICTURES = 0.5  # share of stories whose histories spell their pictures out; the rest have none
ORIGINAL_CAPTION = 0.15  # share of captions that leave nothing out
CAPTION_WEIGHT = 0.1  # of a caption's tokens beside an answer's
BOTTLENECK_FROM = 0.3  # part of the steps after which answers may have to pass through the [IMG] tokens
BOTTLENECK_SHARE = 0.5  # of the steps then
LONG_FROM = 0.8  # part of the steps after which stories have their full length


def train(config: TrainConfig, out: Path, device: str = "cpu", minutes: float | None = None) -> bool:
    """Train the tokenizer and the model into `out`; true when the stage is complete.

    `train_batch_size` counts frames. A pretrained model is not trained here: its tokenizer is copied, its
    [IMG] rows are added.
    """
    settings, shape = config.story_lm, config.model.language
    tokenizer = save_language_tokenizer(config, out)
    torch.manual_seed(config.seed)
    if has_component(out / "language_model"):
        model = load_component(out / "language_model")
    else:
        model = build_language_model(shape)
    if shape.pretrained:
        save_component(model, out / "language_model")
        return True
    if device == "cpu":
        attend_in_chunks(model)
    lm = StoryLM(model, shape.image_tokens)
    vocabulary = vocabulary_of(tokenizer, shape, lm.language_model.config)

    def batches(step: int) -> PackedStories:
        rng = step_rng(config.seed, STAGE, step)
        grown = min(1.0, 0.1 + step / (LONG_FROM * settings.max_train_steps)) ** 2
        longest = settings.min_frames + (settings.max_frames - settings.min_frames) * grown
        frames = story_length(rng, settings.min_frames, longest)
        tellings = [
            tell(int(rng.integers(2**30)), frames, "train")
            for _ in range(max(1, settings.train_batch_size // min(frames, settings.context_frames)))
        ]
        stories = [spelled_out(telling, rng, settings) for telling in tellings]
        return collate([pack(story, vocabulary) for story in stories], PAD)

    def compute_loss(batch: PackedStories, step: int) -> dict[str, Tensor]:
        lm.rescale_image_rows()
        batch = batch.to(torch.device(device))
        late = step >= BOTTLENECK_FROM * settings.max_train_steps
        bottleneck = late and step_rng(config.seed, STAGE + "/bottleneck", step).random() < BOTTLENECK_SHARE
        losses = lm.language_loss(lm(batch, bottleneck=bottleneck), batch)
        answers = answered(batch)[batch.labels != IGNORED]
        weights = torch.where(answers, 1.0, CAPTION_WEIGHT)
        return {"loss": (losses * weights).sum() / weights.sum(), "answer_loss": losses[answers].mean()}

    def sample(path: Path) -> None:
        report = resolution(lm, vocabulary, settings.validation_stories, config.seed, device)
        step = int(path.stem.rpartition("-")[2])
        append_metrics(out, {"stage": STAGE, "step": step, "resolution": report})

    progress = run_stage(
        STAGE,
        settings,
        {"language_model": lm.language_model},
        batches,
        compute_loss,
        out,
        seed=config.seed,
        device=device,
        minutes=minutes,
        extras={"image_rows": lm.image_rows},
        sample=sample,
    )
    return progress.done


def spelled_out(telling: Telling, rng: np.random.Generator, settings: StoryLMStage) -> list[PackedFrame]:
    """A story without pictures: answers are plain captions, and so are some of the picture slots."""
    spelled = rng.random() < SPELLED_PICTURES
    frames, last = [], len(telling) - 1
    for frame, target in window(
        telling.names, telling.placed, rng, settings.drop_prob, settings.context_frames
    ):
        caption, answer = told(telling, frame, rng, ORIGINAL_CAPTION)
        past = in_words(history(caption), answer) if spelled else text_history(caption)
        asked, kept = query(caption) if target else None, past if frame < last else None
        frames.append(PackedFrame(asked, kept, f" {answer}"))
    return frames


def in_words(segments: tuple[Segment, ...], answer: str) -> tuple[Segment, ...]:
    """`segments` with the picture's slot filled by what the picture shows."""
    return tuple(Text(f" {answer}") if isinstance(segment, Picture) else segment for segment in segments)


def answered(stories: PackedStories) -> Tensor:
    """Where a token of an answer is predicted (B, L): from the last [IMG] token on."""
    return ((stories.kinds == Kind.IMAGE) | (stories.kinds == Kind.ANSWER)) & (stories.labels != IGNORED)
