"""The caption encoder's tokenizer: a lower-casing byte-level BPE on captions; any text has an encoding.

Begin is id 0, end is id 1 and pads. Who reads captions adds both (runtime/tokenizer.py).
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from storyv_lite.config import TextConfig
from storyv_lite.modeling.checkpoints import write_atomically
from storyv_lite.modeling.published import from_pretrained
from storyv_lite.train.toonworld import corpus

TOKENIZER_FILE = Path("tokenizers/text_encoder/tokenizer.json")
BOS, EOS = 0, 1
CAPTIONS = 20000  # enough that every word of the world is met many times


def save_text_tokenizer(config: TextConfig, seed: int, out: Path) -> None:
    """Write the tokenizer into the checkpoint folder, unless it is there: ours, or the pretrained model's."""
    path = out / TOKENIZER_FILE
    if path.is_file():
        return
    if config.pretrained:
        from transformers import AutoTokenizer

        loaded = from_pretrained(
            AutoTokenizer, config.pretrained, "model.text.pretrained", subfolder="tokenizer", use_fast=True
        )
        tokenizer = loaded.backend_tokenizer
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus.text_corpus(CAPTIONS, seed), trainer)
    write_atomically(path, lambda new: tokenizer.save(str(new)))
