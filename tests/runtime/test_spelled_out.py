"""Frames told with the names that their captions leave out: what is written, and what it leaves behind."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyv_lite.bundle import PACKAGED, Bundle
from storyv_lite.checkpoint import open_checkpoint
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError
from storyv_lite.manifest import Context
from storyv_lite.prompt import Text, history, query, text_history
from storyv_lite.runtime.backends import open_backend, open_torch_backend
from storyv_lite.runtime.demand import demand_of
from storyv_lite.runtime.footprint import footprint
from storyv_lite.runtime.kv_cache import KVCache
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.runtime.story_context import StoryContext, most_written
from storyv_lite.story import Caption, Story

TOLD = (
    "Milo is waving in the meadow.",
    "He is holding a balloon.",
    "Luna is running on the beach.",
    "They are jumping there.",
    "Bruno is sleeping in the bedroom.",
    "Now she is waving there.",
)
MEANT = ((), ("milo",), (), ("luna", "milo"), (), ("luna",))


@pytest.fixture(scope="module")
def toon() -> Iterator[StoryPipeline]:
    """The model that ships: writing has to be learned."""
    pipeline = StoryPipeline(Bundle.open(PACKAGED), open_backend("cpu", threads=1))
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module", params=["graphs", "torch"])
def tiny(request: pytest.FixtureRequest, tiny_bundle: Path, tiny_checkpoint: Path) -> Model:
    if request.param == "graphs":
        return Model(Bundle.open(tiny_bundle), open_backend("cpu", threads=1))
    return Model(open_checkpoint(tiny_checkpoint), open_torch_backend("cpu", "fp32", 1))


def spelled(model: Model, context: StoryContext, captions: tuple[str, ...] = TOLD) -> list[str]:
    """What was written for each frame of a story whose pictures are not looked at."""
    found = []
    nothing = np.zeros((0, 0, 3), np.uint8)
    for index, caption in enumerate(captions):
        if index:
            context.remember(index - 1, captions[index - 1], nothing)
        found.append(context.read(index, caption)[1].spelled)
    return found


def of_captions(model: Model, limits: Context, kv_cache: str | None = None) -> StoryContext:
    return StoryContext(model, [Caption(text) for text in TOLD], False, limits, kv_cache, spell_out=True)


def test_the_default_model_writes_whom_he_she_and_they_mean(toon: StoryPipeline) -> None:
    model = toon.model
    found = spelled(model, of_captions(model, toon.bundle.model.context))
    assert [tuple(sorted(name.casefold() for name in model.named(text))) for text in found] == [*MEANT]
    assert "balloon" in found[1] and all(text.endswith(".") for text in found if text)


def test_a_finished_frame_stands_in_the_context_as_it_was_written(toon: StoryPipeline) -> None:
    context = of_captions(toon.model, toon.bundle.model.context)
    found = spelled(toon.model, context)
    for frame, (caption, text) in enumerate(zip(TOLD[:-1], found[:-1], strict=True)):
        assert context._pieces[frame] == toon.model.piece(frame, text_history(text or caption))


@pytest.mark.parametrize(
    ("caption", "written", "stands"),
    [
        ("She is waving.", "luna waving, in the meadow.", True),
        ("Milo is waving to her.", "milo and luna waving.", True),
        ("Milo and Luna are waving.", "bruno, luna and milo waving.", True),
        ("Milo is waving.", "milo waving middle, in the meadow.", False),
        ("Milo and Luna are waving.", "milo waving.", False),
        ("Milo is waving to her.", "bruno and luna waving.", False),
        ("It is empty.", "the meadow, empty.", False),
        ("She is waving.", "", False),
    ],
)
def test_what_is_written_stands_for_a_caption_when_it_names_more_and_nobody_less(
    toon: StoryPipeline, monkeypatch: pytest.MonkeyPatch, caption: str, written: str, stands: bool
) -> None:
    read = toon.model.language.answer

    def says(before: Any, wanted: Any, cache: Any, most: int) -> Any:
        return read(before, wanted, cache, 0)[0], written

    monkeypatch.setattr(toon.model.language, "answer", says)
    context = of_captions(toon.model, toon.bundle.model.context)
    assert spelled(toon.model, context, (caption,)) == [written if stands else ""]


@pytest.mark.parametrize("kv_cache", [None, "int8"])
def test_writing_leaves_states_and_cache_as_reading_does(tiny: Model, kv_cache: str | None) -> None:
    caches: list[KVCache] = [tiny.language.new_cache(400, kv_cache) for _ in range(2)]
    story = [tiny.piece(i, text_history(text)) for i, text in enumerate(TOLD)]
    for index, text in enumerate(TOLD):
        wanted = tiny.piece(index, query(text))
        read = tiny.language.read(story[:index], wanted, caches[0])
        states, _ = tiny.language.answer(story[:index], wanted, caches[1], 20)
        assert np.array_equal(read, states)
        one, other = (cache.to_host() for cache in caches)
        assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
        assert caches[0].calls == caches[1].calls and caches[0].pieces == caches[1].pieces


def test_what_is_no_sentence_by_the_last_token_is_not_used(toon: StoryPipeline) -> None:
    language, model = toon.model.language, toon.model
    wanted = model.piece(1, query(TOLD[1]))
    before = [model.piece(0, text_history(TOLD[0]))]
    whole = language.answer(before, wanted, language.new_cache(200), 40)[1]
    length = len(model.piece(0, (Text(f" {whole}"),)))
    assert language.answer(before, wanted, language.new_cache(200), length)[1] == whole
    assert language.answer(before, wanted, language.new_cache(200), length - 1)[1] == ""


def test_a_sentence_that_is_longer_to_read_than_it_was_to_write_is_not_used(
    toon: StoryPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    language, tokenizer = toon.model.language, toon.model.story_tokenizer
    half, stop = tokenizer.encode("é")[0], tokenizer.encode(".")[-1]
    told = iter([half] * 10 + [stop])
    monkeypatch.setattr(language, "_likeliest", lambda state: next(told))
    wanted = toon.model.piece(1, query(TOLD[1]))
    assert language.answer([], wanted, language.new_cache(200), 11)[1] == ""


@pytest.mark.parametrize("kv_cache", [None, "fp16"])
def test_what_is_written_stays_below_the_cap(toon: StoryPipeline, kv_cache: str | None) -> None:
    model, limits = toon.model, Context(tokens=150, frames=24)
    context = of_captions(model, limits, kv_cache)
    captions = (*TOLD, *TOLD[3:] * 5)
    spelled(model, context, captions)
    assert context._cache is not None
    assert context._cache.capacity <= limits.tokens
    assert context._cache.committed <= limits.tokens - most_written(model)


def test_a_cap_that_holds_no_written_caption_is_refused(toon: StoryPipeline) -> None:
    story = Story(tuple(Caption(text) for text in TOLD))
    toon.draw(story, context_size=90)
    with pytest.raises(ConfigError, match="90 tokens is too small.* both spelled out") as refusal:
        toon.draw(story, context_size=90, spell_out=True)
    assert refusal.value.hint and "`--spell-out`" in refusal.value.hint
    least = int(refusal.value.hint.split("--context-size ")[1].split("`")[0])
    toon.draw(story, context_size=least, spell_out=True)
    with pytest.raises(ConfigError, match="is too small") as plain:
        toon.draw(story, context_size=20)
    assert plain.value.hint and "--spell-out" not in plain.value.hint


def test_a_plan_counts_what_may_be_written(toon: StoryPipeline) -> None:
    captions, limits = [Caption(text) for text in TOLD], toon.bundle.model.context
    plain = demand_of(toon.model, captions, 3.0, limits)
    longer = demand_of(toon.model, captions, 3.0, limits, spell_out=True)
    told = len(toon.model.piece(0, history(""))) + most_written(toon.model)
    asked = max(len(toon.model.piece(0, query(text))) for text in TOLD) + most_written(toon.model)
    assert longer.tokens == 1 + len(TOLD) * told + asked
    assert plain.tokens < longer.tokens
    table = toon.bundle.variant(Component.TOKEN_EMBEDDING, "table")
    held = footprint(Component.TOKEN_EMBEDDING, table, toon.model.dims, longer).loaded
    assert held == sum(part.bytes for part in table.parts) and plain.written == 0
    reading = toon.bundle.variant(Component.LANGUAGE_MODEL, "onnx")
    halves = replace(reading, parts=reading.parts * 2)
    once, often = (
        footprint(Component.LANGUAGE_MODEL, halves, toon.model.dims, one) for one in (plain, longer)
    )
    assert often.load_seconds == pytest.approx(most_written(toon.model) * once.load_seconds)


def test_a_story_taken_up_is_told_as_it_was(toon: StoryPipeline) -> None:
    story = Story(tuple(Caption(text) for text in TOLD[:4]))
    whole = list(toon.draw(story, 3, num_inference_steps=1, spell_out=True))
    there = [frame.image for frame in whole[:2]]
    rest = list(toon.draw(story, 3, num_inference_steps=1, spell_out=True, finished=there))
    assert [frame.index for frame in rest] == [2, 3] and whole[1].reading.spelled
    for one, other in zip(whole[2:], rest, strict=True):
        assert np.array_equal(one.image, other.image) and one.reading == other.reading
    plain = list(toon.draw(story, 3, num_inference_steps=1))
    assert not any(frame.reading.spelled for frame in plain)
    assert any(not np.array_equal(one.image, other.image) for one, other in zip(whole, plain, strict=True))


def test_a_story_whose_frame_failed_is_told_as_if_that_frame_were_not_there(toon: StoryPipeline) -> None:
    captions = tuple(Caption(text) for text in (TOLD[0], TOLD[1], TOLD[2], TOLD[5]))
    drawn = [frame.image for frame in toon.draw(Story(captions[:3]), num_inference_steps=1, spell_out=True)]
    fewer, there = Story((captions[0], *captions[2:])), [drawn[0], drawn[2]]
    with_gap = [drawn[0], None, drawn[2]]
    (wanted,) = toon.draw(fewer, num_inference_steps=1, spell_out=True, finished=there)
    (found,) = toon.draw(Story(captions), num_inference_steps=1, spell_out=True, finished=with_gap)
    assert found.reading.context == (0, 2) and wanted.reading.context == (0, 1)
    assert found.reading.spelled == wanted.reading.spelled
    assert toon.model.named(found.reading.spelled) == toon.model.named("luna")
