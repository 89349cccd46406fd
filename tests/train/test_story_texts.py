"""The texts of stories as the language model learns them."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from storyv_lite.config import LanguageConfig, ModelConfig, StoryLMStage, TrainConfig
from storyv_lite.modeling.checkpoints import load_component, read_checkpoint
from storyv_lite.modeling.packing import IGNORED, Kind, Vocabulary, pack
from storyv_lite.modeling.story_lm import build_language_model
from storyv_lite.prompt import ImageQuery, Picture, Text
from storyv_lite.train import story_lm
from storyv_lite.train.language_tokenizer import TOKENIZER_FILE, train_tokenizer, vocabulary_of
from storyv_lite.train.resolution import reference_keys
from storyv_lite.train.telling import Telling, tell
from storyv_lite.train.toonworld.captions import plain
from storyv_lite.train.toonworld.cast import CAST
from storyv_lite.train.toonworld.phrases import IN, THING
from storyv_lite.train.toonworld.scene import Actor, Scene
from storyv_lite.train.toonworld.stories import sample_story

SHAPE = LanguageConfig(
    vocab_size=640,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=1,
    max_position_embeddings=512,
    image_tokens=4,
    visual_tokens=2,
)


def captions() -> Iterator[str]:
    for seed in range(400):
        for frame in sample_story(seed, 6, "train").frames:
            yield from (f" Caption: {frame.original} Image: ", f" Caption: {frame.reference} Image: ")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(captions(), SHAPE.vocab_size, SHAPE.image_tokens)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer, SHAPE, build_language_model(SHAPE).config)


def test_every_piece_has_a_row_and_the_image_tokens_are_the_last_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SHAPE.vocab_size + SHAPE.image_tokens
    assert [tokenizer.token_to_id(f"[IMG{i}]") for i in range(4)] == [640, 641, 642, 643]
    assert [tokenizer.token_to_id(name) for name in ("<s>", "</s>", "<pad>")] == [0, 1, 2]


def test_every_name_is_one_piece_and_any_text_comes_back_in_lower_case(tokenizer: Tokenizer) -> None:
    for who in CAST:
        assert len(tokenizer.encode(f" {who.name.capitalize()}").ids) == 1
    text = "Ein Drache fliegt über die 山 & [x]!"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text.lower()


def test_the_answer_is_the_plain_caption_after_the_image_tokens(vocabulary: Vocabulary) -> None:
    telling = tell(0, 4, "train")
    frames = story_lm.spelled_out(telling, np.random.default_rng(1), StoryLMStage(drop_prob=0.0))
    assert len(frames) == 4 and frames[-1].history is None
    for frame, answer in zip(frames, telling.plain, strict=True):
        assert frame.answer.strip() == answer
        assert frame.query is not None and isinstance(frame.query[-1], ImageQuery)
    packed = pack(frames, vocabulary)
    answers = story_lm.answered(packed)
    words = [t for f in frames for t in [*vocabulary.encode(f.answer), vocabulary.eos_token_id]]
    assert packed.labels[answers].tolist() == words
    assert int((packed.kinds == Kind.PICTURE).sum()) == 0 and (packed.labels != IGNORED).any()


def test_a_spelled_picture_stands_where_its_visual_tokens_will() -> None:
    segments = (Text("a"), Picture(), Text("b"))
    assert story_lm.in_words(segments, "Milo waves.") == (Text("a"), Text(" Milo waves."), Text("b"))


def test_plain_captions_hold_what_is_known_and_every_fact_in_its_place() -> None:
    for seed in range(40):
        telling = tell(seed, 8, "train")
        for text, reference, scene in zip(telling.plain, telling.reference, telling.scenes, strict=True):
            *clauses, place = text.removesuffix(".").split(", ")
            assert place == IN[scene.place][0] and len(clauses) == len(scene.actors)
            actors = {actor.name: actor for actor in scene.actors}
            placed = bool({"left", "middle", "right"} & set(re.findall("[a-z]+", reference.lower())))
            layout = {1: ["middle"], 2: ["left", "right"], 3: ["left", "middle", "right"]}[len(clauses)]
            for clause, laid_out in zip(clauses, layout, strict=True):
                name, action, position, *held = clause.split()
                actor = actors[name.lower()]
                assert action == actor.action and position == (actor.position if placed else laid_out)
                assert held == ["with", *(THING[actor.prop].split() if actor.prop else ("still", "hands"))]


def test_two_scenes_that_read_alike_are_said_alike() -> None:
    pair = (Actor("rex", "sitting", None, "left"), Actor("kiki", "waving", "ball", "right"))
    mirrored = tuple(replace(actor, position="right" if actor is pair[0] else "left") for actor in pair)
    open_, other = (plain(Scene("town", actors, 1), placed=False) for actors in (pair, mirrored[::-1]))
    assert open_ == other == "Rex sitting left with still hands, Kiki waving right with a ball, in town."
    assert plain(Scene("town", mirrored, 1), placed=True) != plain(Scene("town", pair, 1), placed=True)


def test_a_name_counts_by_how_the_caption_refers_to_it() -> None:
    scene = sample_story(0, 1, "train").frames[0].scene
    texts = ("Milo meets Luna.", "She waves.", "The fox sleeps.", "They run.", "Luna sits.")
    telling = Telling(0, texts, texts, texts, (("milo", "luna"),) * 5, (scene,) * 5)
    assert reference_keys(telling, 0, "milo") == ["named"]
    assert reference_keys(telling, 1, "luna") == ["resolved", "by_reference.she", "by_distance.1"]
    assert reference_keys(telling, 2, "milo") == ["resolved", "by_reference.kind", "by_distance.2"]
    assert reference_keys(telling, 3, "luna") == ["resolved", "by_reference.they", "by_distance.3"]


def test_the_stage_writes_the_model_with_its_rows_the_tokenizer_and_a_report(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / TOKENIZER_FILE).parent.mkdir(parents=True)
    tokenizer.save(str(tmp_path / TOKENIZER_FILE))
    stage = StoryLMStage(
        max_train_steps=3, train_batch_size=4, max_frames=4, lr_warmup_steps=1, validation_stories=2
    )
    config = TrainConfig(model=ModelConfig(language=SHAPE), story_lm=replace(stage, sample_steps=100))
    assert story_lm.train(config, tmp_path)
    model = load_component(tmp_path / "language_model")
    assert model.get_input_embeddings().weight.shape == (644, 32)  # type: ignore[operator]
    assert read_checkpoint(tmp_path)["stages"]["story_lm"]["done"]
    assert '"resolved"' in (tmp_path / "metrics.jsonl").read_text()
