"""The story language model: a causal transformer with [IMG] rows and a door for pictures (specification C.1).

Built from transformers' own Llama or OPT at any size. The [IMG] rows are a parameter of their own, so that a
frozen model needs no gradient, and no optimizer state, of its whole token table; reading the model's state
writes them into the table, where the saved model and the runtime find them. Drawing needs no lm_head.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from storyv_lite.config import LanguageConfig
from storyv_lite.errors import ConfigError
from storyv_lite.modeling.packing import IGNORED, Kind, PackedStories, additive_mask, visible
from storyv_lite.modeling.published import from_pretrained

CHUNK = 256  # queries that attend at once


def build_language_model(config: LanguageConfig, **pretrained: Any) -> PreTrainedModel:
    """A Llama of the configured size with fresh weights, or the pretrained model, with [IMG] rows last.

    `pretrained` goes to `from_pretrained` (dtype, revision, ...).
    Raises ConfigError when the heads do not divide the hidden size, BundleError when it cannot be had.
    """
    if config.pretrained:
        model = from_pretrained(
            AutoModelForCausalLM, config.pretrained, "model.language.pretrained", **pretrained
        )
    elif config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"`model.language.hidden_size` is {config.hidden_size}, and needs to be a multiple of "
            f"`model.language.num_attention_heads` ({config.num_attention_heads})"
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_attention_heads,
                max_position_embeddings=config.max_position_embeddings,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        )
    return add_image_rows(model, config.image_tokens)


def add_image_rows(model: PreTrainedModel, image_tokens: int) -> PreTrainedModel:
    """`model` with `image_tokens` new rows at the end of its token table, of the mean norm of the others."""
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + image_tokens, mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            fresh = F.normalize(torch.randn_like(table[-image_tokens:]), dim=-1)
            table[-image_tokens:] = fresh * table[:-image_tokens].norm(dim=-1).mean()
    return model


def attend_in_chunks(model: PreTrainedModel) -> None:
    """Make a model whose mask is causal, and given, attend by chunks of queries that read no later key.

    On a CPU that goes forward and back in half the time of the fused kernel, which computes what is hidden.
    """
    AttentionInterface.register("causal_chunks", _causal_chunks)
    model.set_attn_implementation("causal_chunks")


def _causal_chunks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """As transformers calls it: query (B, heads, L, D), key and value of no more heads, mask (B, 1, L, L).

    Out comes (B, L, heads, D).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    out = []
    for start in range(0, query.shape[2], CHUNK):
        rows = slice(start, start + CHUNK)
        seen = slice(0, start + CHUNK)
        scores = query[:, :, rows] * scaling @ key[:, :, seen].transpose(2, 3)
        scores = scores + mask[:, :, rows, seen].to(scores.dtype)
        out.append(scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value[:, :, seen])
    return torch.cat(out, 2).transpose(1, 2).contiguous(), None


class VisualProjection(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """A picture's pooled vector (B, vision_hidden_size) to visual tokens (B, visual_tokens, hidden_size)."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self, vision_hidden_size: int, visual_tokens: int, hidden_size: int, norm: float = 1.0
    ) -> None:
        """`norm` is the norm a fresh projection gives each visual token: that of the table's rows."""
        super().__init__()
        self.linear = nn.Linear(vision_hidden_size, visual_tokens * hidden_size)
        # The pooled vector leaves a layer norm, so its norm is about the root of its width.
        nn.init.normal_(self.linear.weight, std=norm / (vision_hidden_size * hidden_size) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        tokens: Tensor = self.linear(pooled).unflatten(-1, (self.config.visual_tokens, -1))
        return tokens


class StoryLM(nn.Module):
    """The language model, its [IMG] rows and the visual projection, as `align` and `story_lm` train them."""

    def __init__(
        self, language_model: PreTrainedModel, image_tokens: int, visual: VisualProjection | None = None
    ) -> None:
        """`visual` may be left out where no story holds a picture."""
        super().__init__()
        self.language_model = language_model
        self.visual_projection = visual
        self.image_rows = nn.Embedding(image_tokens, self.table.shape[1])
        self.image_rows.weight.data.copy_(self.table[-image_tokens:])
        language_model.register_state_dict_pre_hook(lambda *_: self.commit_image_rows())

    @property
    def table(self) -> Tensor:
        """The token table (rows, hidden_size); its last rows are stale while `image_rows` learns."""
        weight: Tensor = self.language_model.get_input_embeddings().weight
        return weight

    def forward(
        self, stories: PackedStories, pooled: Tensor | None = None, bottleneck: bool = False
    ) -> Tensor:
        """Last hidden states (B, L, H) after the final norm.

        `pooled` (N, vision_hidden_size) are the pictures in the order of their slots, story by story.
        """
        embeds = self.embed(stories, pooled)
        hidden: Tensor = self.language_model.base_model(
            inputs_embeds=embeds,
            attention_mask=additive_mask(visible(stories, bottleneck), embeds.dtype),
            position_ids=stories.position_ids,
            use_cache=False,
        ).last_hidden_state
        return hidden

    def embed(self, stories: PackedStories, pooled: Tensor | None) -> Tensor:
        """Input embeddings (B, L, H): rows of the table, [IMG] rows and visual tokens."""
        embeds: Tensor = self.language_model.get_input_embeddings()(stories.input_ids)
        images, rows = stories.kinds == Kind.IMAGE, self.image_rows.weight.to(embeds.dtype)
        embeds = embeds.masked_scatter(images[..., None], rows.repeat(int(images.sum()) // len(rows), 1))
        if pooled is None or self.visual_projection is None:
            return embeds
        tokens = self.visual_projection(pooled).to(embeds.dtype)
        return embeds.masked_scatter((stories.kinds == Kind.PICTURE)[..., None], tokens)

    def image_states(self, hidden: Tensor, stories: PackedStories) -> Tensor:
        """What the mapper reads: states of the [IMG] tokens plus their rows, (targets, image_tokens, H)."""
        rows = self.image_rows.weight
        states = hidden[stories.kinds == Kind.IMAGE].view(-1, *rows.shape)
        return states + rows.to(states.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (..., rows) of the next token for hidden states (..., H), [IMG] rows as they are now."""
        head = self.language_model.get_output_embeddings()
        if head.weight is not self.table:
            scores: Tensor = head(hidden)
            return scores
        rows = self.image_rows.weight
        return F.linear(hidden, torch.cat([self.table[: -len(rows)], rows.to(self.table.dtype)]))

    def language_loss(self, hidden: Tensor, stories: PackedStories) -> Tensor:
        """Cross-entropy of every predicted token, in the order of `labels != IGNORED`: (predicted,), fp32."""
        predicted = stories.labels != IGNORED
        return F.cross_entropy(
            self.logits(hidden[predicted]).float(), stories.labels[predicted], reduction="none"
        )

    @torch.no_grad()
    def rescale_image_rows(self) -> None:
        """Bring the [IMG] rows to the mean norm of the others, as specification C.1 does after each step."""
        rows = self.image_rows.weight
        rows.mul_(self.table[: -len(rows)].norm(dim=-1).mean() / rows.norm(dim=-1).mean())

    @torch.no_grad()
    def commit_image_rows(self) -> None:
        """Write the [IMG] rows, rescaled, into the token table (and a tied lm_head)."""
        self.rescale_image_rows()
        rows = self.image_rows.weight
        self.table[-len(rows) :] = rows.to(self.table.dtype)
