"""The story language model: packed reading, labels, the [IMG] rows."""

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from storyv_lite.config import LanguageConfig
from storyv_lite.errors import ConfigError
from storyv_lite.modeling.packing import (
    IGNORED,
    Kind,
    PackedFrame,
    PackedStories,
    Vocabulary,
    collate,
    pack,
    tokens_of,
    visible,
)
from storyv_lite.modeling.story_lm import (
    CHUNK,
    StoryLM,
    VisualProjection,
    add_image_rows,
    attend_in_chunks,
    build_language_model,
)
from storyv_lite.prompt import history, query

ROWS, IMAGE_TOKENS, VISUAL_TOKENS, HIDDEN, VISION = 40, 4, 3, 32, 12
VOCABULARY = Vocabulary(
    encode=lambda text: [3 + (7 * ord(letter)) % (ROWS - 3) for letter in text[::3]],
    bos_token_id=0,
    eos_token_id=1,
    first_image_token_id=ROWS,
    image_tokens=IMAGE_TOKENS,
    visual_tokens=VISUAL_TOKENS,
)
CAPTIONS = ["milo holds a ball", "he waves", "luna comes to the beach with a cake", "she sleeps there"]


def llama() -> PreTrainedModel:
    return build_language_model(
        LanguageConfig(
            vocab_size=ROWS,
            hidden_size=HIDDEN,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=512,
            image_tokens=IMAGE_TOKENS,
        )
    )


def opt() -> PreTrainedModel:
    config = OPTConfig(
        vocab_size=ROWS,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    return add_image_rows(OPTForCausalLM(config), IMAGE_TOKENS)


def story_lm(model: PreTrainedModel) -> StoryLM:
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # large enough for differences to show
    return StoryLM(model, IMAGE_TOKENS, VisualProjection(VISION, VISUAL_TOKENS, HIDDEN, norm=5.0)).eval()


def packed(captions: list[str], answer: str = "") -> PackedStories:
    last = len(captions) - 1
    return pack(
        [PackedFrame(query(c), history(c) if i < last else None, answer) for i, c in enumerate(captions)],
        VOCABULARY,
    )


def read_apart(lm: StoryLM, captions: list[str], pooled: torch.Tensor, frame: int) -> torch.Tensor:
    """The [IMG] states of one frame as the runtime gets them: plain causal reading of [prefix, query]."""
    tokens = [(VOCABULARY.bos_token_id, Kind.TEXT)]
    for caption in captions[:frame]:
        tokens += tokens_of(history(caption), VOCABULARY)
    tokens += tokens_of(query(captions[frame]), VOCABULARY)
    ids, kinds = torch.tensor(tokens).T[:, None]
    zeros = torch.zeros_like(ids)
    row = PackedStories(ids, zeros, zeros, zeros, kinds)
    model = lm.language_model.base_model
    states = model(inputs_embeds=lm.embed(row, pooled[:frame]), use_cache=False).last_hidden_state
    return lm.image_states(states, row)


@pytest.mark.parametrize("build", [llama, opt])
def test_one_packed_pass_equals_reading_every_prefix_apart(build: object) -> None:
    torch.manual_seed(0)
    lm = story_lm(llama() if build is llama else opt())
    captions, pooled = CAPTIONS * 3, torch.randn(11, VISION)
    stories = packed(captions)
    states = lm.image_states(lm(stories, pooled), stories)
    assert states.shape == (12, IMAGE_TOKENS, HIDDEN)
    for frame in range(12):
        apart = read_apart(lm, captions, pooled, frame)
        assert (states[frame] - apart[0]).abs().max() < 1e-4


def test_committing_and_rewinding_a_cache_gives_the_packed_states() -> None:
    torch.manual_seed(0)
    lm = story_lm(llama())
    pooled = torch.randn(3, VISION)
    stories = packed(CAPTIONS)
    states = lm.image_states(lm(stories, pooled), stories)
    kinds, blocks = stories.kinds[0], stories.blocks[0]
    embeds = lm.embed(stories, pooled)
    model, cache, committed = lm.language_model.base_model, None, 0
    for frame in range(len(CAPTIONS)):
        # One call reads what is pending (begin token or last history) and the query; the query is cropped.
        pending = blocks == frame
        rows = torch.cat([embeds[:, pending], embeds[:, blocks == -(frame + 1)]], dim=1)
        output = model(inputs_embeds=rows, cache=cache, use_cache=True)
        read = output.last_hidden_state[:, -IMAGE_TOKENS:] + lm.image_rows.weight
        torch.testing.assert_close(read[0], states[frame], atol=1e-4, rtol=0)
        cache, committed = output.cache, committed + int(pending.sum())
        cache.crop(committed - cache.get_seq_length())
    assert int((kinds == Kind.PICTURE).sum()) == 3 * VISUAL_TOKENS


def test_batched_stories_of_different_length_read_as_they_do_alone() -> None:
    torch.manual_seed(0)
    lm = story_lm(llama())
    pooled = torch.randn(4, VISION)
    short, long = packed(CAPTIONS[:2]), packed(CAPTIONS)
    batch = collate([short, long], pad_token_id=2)
    together = lm.image_states(lm(batch, pooled), batch)
    torch.testing.assert_close(together[:2], lm.image_states(lm(short, pooled[:1]), short), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[2:], lm.image_states(lm(long, pooled[1:]), long), atol=1e-5, rtol=0)


def test_labels_cover_text_and_the_first_image_token_only() -> None:
    stories = packed(CAPTIONS[:2])
    labels, kinds, blocks = stories.labels[0].tolist(), stories.kinds[0], stories.blocks[0]
    first_query = [token for token, _ in tokens_of(query(CAPTIONS[0]), VOCABULARY)]
    text = first_query[:-IMAGE_TOKENS]
    assert labels[: len(text) + 1] == [
        *text,
        ROWS,
    ]  # the text ends in [IMG0]
    assert labels[len(text) + 1 : len(first_query) + 1] == [IGNORED] * IMAGE_TOKENS
    assert all(label < ROWS for label in labels if label != ROWS)
    pictures = (kinds == Kind.PICTURE).nonzero().flatten().tolist()
    assert [labels[i - 1] for i in pictures] == [IGNORED] * VISUAL_TOKENS
    assert labels[pictures[-1]] == VOCABULARY.encode(f"</img> Caption: {CAPTIONS[0]}")[0]
    end_of_history = (blocks == 1).nonzero().flatten()[-1]
    assert labels[end_of_history] == VOCABULARY.encode(f" Caption: {CAPTIONS[1]} Image: ")[0]


def test_a_query_and_the_history_after_it_start_at_the_same_position() -> None:
    stories = packed(CAPTIONS)
    positions, blocks = stories.position_ids[0], stories.blocks[0]
    committed = 1
    for frame in (1, 2, 3):
        assert positions[blocks == -frame][0] == positions[blocks == frame][0] == committed
        committed += int((blocks == frame).sum())
    assert positions[blocks == -4][0] == committed


def test_behind_the_bottleneck_an_answer_sees_image_tokens_and_itself_only() -> None:
    stories = packed(CAPTIONS[:2], answer="milo waves")
    seen, kinds, blocks = visible(stories, bottleneck=True)[0], stories.kinds[0], stories.blocks[0]
    for row in ((kinds == Kind.ANSWER) & (blocks == -2)).nonzero().flatten():
        columns = seen[row].nonzero().flatten()
        assert {int(kinds[c]) for c in columns} == {Kind.IMAGE, Kind.ANSWER}
        assert all(blocks[c] == -2 for c in columns)
    others = kinds != Kind.ANSWER
    assert torch.equal(seen[others], visible(stories)[0][others])


def test_image_rows_are_last_and_get_the_mean_norm() -> None:
    model = llama()
    table = model.get_input_embeddings().weight
    assert table.shape == (ROWS + IMAGE_TOKENS, HIDDEN)
    torch.testing.assert_close(table[-4:].norm(dim=-1), table[:-4].norm(dim=-1).mean().expand(4))


def test_image_rows_alone_learn_when_the_model_is_frozen_and_are_saved_in_its_table() -> None:
    torch.manual_seed(0)
    lm = story_lm(opt())
    lm.language_model.requires_grad_(False)
    stories = packed(CAPTIONS)
    before = lm.table.detach().clone()
    hidden = lm(stories, torch.randn(3, VISION))
    (lm.language_loss(hidden, stories).mean() + lm.image_states(hidden, stories).square().mean()).backward()  # type: ignore[no-untyped-call]
    assert lm.table.grad is None and lm.image_rows.weight.grad is not None
    with torch.no_grad():
        lm.image_rows.weight -= lm.image_rows.weight.grad
    saved = lm.language_model.state_dict()["model.decoder.embed_tokens.weight"]
    torch.testing.assert_close(saved[-IMAGE_TOKENS:], lm.image_rows.weight.detach())
    torch.testing.assert_close(saved[:-IMAGE_TOKENS], before[:-IMAGE_TOKENS])
    norm = before[:-IMAGE_TOKENS].norm(dim=-1).mean()
    torch.testing.assert_close(lm.image_rows.weight.norm(dim=-1).mean(), norm)


def test_a_fresh_visual_token_has_the_norm_it_is_asked_for() -> None:
    torch.manual_seed(0)
    projection = VisualProjection(192, 4, 256, norm=0.3)
    pooled = torch.nn.functional.layer_norm(torch.randn(20, 192), (192,))
    assert projection(pooled).norm(dim=-1).mean().item() == pytest.approx(0.3, rel=0.1)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="`model.language.num_attention_heads`"):
        build_language_model(LanguageConfig(hidden_size=30, num_attention_heads=4))


def grouped() -> PreTrainedModel:
    """Two heads that share a key."""
    config = llama().config
    config.num_key_value_heads = 1
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("build", [llama, opt, grouped])
def test_attention_in_chunks_gives_the_same_states_and_gradients(
    build: Callable[[], PreTrainedModel],
) -> None:
    torch.manual_seed(0)
    lm = story_lm(build())
    stories = packed(CAPTIONS * 6)
    assert stories.input_ids.shape[1] > CHUNK
    pictures = int((stories.kinds == Kind.PICTURE).sum()) // VISUAL_TOKENS
    pooled = torch.randn(pictures, VISION)

    def found() -> list[torch.Tensor]:
        lm.zero_grad()
        hidden = lm(stories, pooled)
        (hidden * torch.linspace(-1, 1, HIDDEN)).sum().backward()
        return [hidden.detach(), *(p.grad.clone() for p in lm.parameters() if p.grad is not None)]

    fused = found()
    attend_in_chunks(lm.language_model)
    for ours, theirs in zip(found(), fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * max(1.0, float(theirs.abs().max())))
