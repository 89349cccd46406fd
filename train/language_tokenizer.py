"""The language model's tokenizer: a byte-level BPE on the captions of stories; any text has an encoding.

Begin, end and padding are ids 0, 1, 2; the [IMG] tokens are the last ids, after exactly `vocab_size` pieces
(what the captions do not fill is reserved), so that ids are rows of the token table.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PretrainedConfig

from storyv_lite.checkpoint import train_command
from storyv_lite.config import LanguageConfig, TrainConfig
from storyv_lite.errors import BundleError
from storyv_lite.modeling.checkpoints import write_atomically
from storyv_lite.modeling.packing import Vocabulary
from storyv_lite.modeling.published import from_pretrained
from storyv_lite.prompt import Text, history, query
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import sample_story

TOKENIZER_FILE = Path("tokenizers/language_model/tokenizer.json")
BOS, EOS, PAD = 0, 1, 2
SPECIALS = ("<s>", "</s>", "<pad>")
STORIES, FRAMES = 3000, 8  # enough that every word of the world is met many times


def train_tokenizer(texts: Iterator[str], vocab_size: int, image_tokens: int) -> Tokenizer:
    """A lower-casing byte-level BPE of exactly `vocab_size` pieces, and the [IMG] tokens after them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    pieces = content["model"]["vocab"]
    pieces |= {f"<reserved_{i}>": i for i in range(len(pieces), vocab_size)}
    full = Tokenizer.from_str(json.dumps(content))
    full.add_special_tokens(
        [AddedToken(f"[IMG{i}]", special=True, normalized=False) for i in range(image_tokens)]
    )
    return full


def captions(seed: int) -> Iterator[str]:
    """Training captions in both wordings, as they stand in a prompt."""
    for index in range(STORIES):
        for frame in sample_story(story_seed("train", seed, index), FRAMES, "train").frames:
            for text in (frame.original, frame.reference):
                pieces = (*query(text), *history(text))
                yield from (piece.text for piece in pieces if isinstance(piece, Text))


def save_language_tokenizer(config: TrainConfig, out: Path) -> Tokenizer:
    """The tokenizer of the checkpoint folder; when there is none it is trained, or the pretrained model's."""
    path, shape = out / TOKENIZER_FILE, config.model.language
    if path.is_file():
        return load_language_tokenizer(out)
    if shape.pretrained:
        from transformers import AutoTokenizer

        loaded = from_pretrained(AutoTokenizer, shape.pretrained, "model.language.pretrained")
        tokenizer: Tokenizer = loaded.backend_tokenizer
    else:
        tokenizer = train_tokenizer(captions(config.seed), shape.vocab_size, shape.image_tokens)
    write_atomically(path, lambda new: tokenizer.save(str(new)))
    return tokenizer


def load_language_tokenizer(out: Path) -> Tokenizer:
    """Raises `BundleError` when the checkpoint folder has none."""
    path = out / TOKENIZER_FILE
    if not path.is_file():
        raise BundleError(f"`{path}` is missing", hint=train_command(out, "story_lm"))
    return Tokenizer.from_file(str(path))


def vocabulary_of(tokenizer: Tokenizer, shape: LanguageConfig, model: PretrainedConfig) -> Vocabulary:
    """What packing needs to know; the last rows of the token table are the [IMG] tokens.

    The begin and end tokens are the model's: OPT begins with what its tokenizer calls `</s>`.
    """
    return Vocabulary(
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        bos_token_id=model.bos_token_id,
        eos_token_id=model.eos_token_id,
        first_image_token_id=model.vocab_size - shape.image_tokens,
        image_tokens=shape.image_tokens,
        visual_tokens=shape.visual_tokens,
    )
