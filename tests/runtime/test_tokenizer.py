"""The bundle's tokenizers: names found, nothing cut, nothing special that the author wrote."""

from pathlib import Path

import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.errors import BundleError
from storyv_lite.runtime.tokenizer import LanguageTokenizer, TextTokenizer, mentions

NAMES = ("milo", "luna", "bruno", "mr slate", "slate")


@pytest.fixture(scope="module")
def texts(tiny_bundle: Path) -> TextTokenizer:
    return TextTokenizer(Bundle.open(tiny_bundle).tokenizer("text_encoder"), 64)


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("Milo waves to LUNA.", ["milo", "luna"]),
        ("Milo's hat, milo!", ["milo", "milo"]),
        ("Milou and camilo are others.", []),
        ("Mr Slate shouts.", ["mr slate"]),
        ("", []),
    ],
)
def test_names_are_found_as_whole_words_in_any_case(caption: str, found: list[str]) -> None:
    assert [mention.name for mention in mentions(caption, NAMES)] == found


def test_nobody_is_found_where_there_is_no_cast() -> None:
    assert mentions("Milo waves.", ()) == []


def test_a_caption_stands_between_its_begin_and_end_tokens(texts: TextTokenizer) -> None:
    encoded = texts.encode("Milo is waving.")
    assert encoded.ids.shape == (1, 64)
    assert encoded.ids[0, 0] == 0
    assert (encoded.ids[0, encoded.tokens - 1 :] == 1).all()
    assert (encoded.ids[0, 1 : encoded.tokens - 1] > 1).all()


def test_the_position_of_a_name_is_that_of_its_last_piece(texts: TextTokenizer) -> None:
    encoded = texts.encode("Now Milo and Luna wave.", NAMES)
    assert encoded.names == ("milo", "luna")
    up_to_milo, up_to_luna = texts.encode("Now Milo"), texts.encode("Now Milo and Luna")
    assert encoded.positions.tolist() == [up_to_milo.tokens - 2, up_to_luna.tokens - 2]
    for prefix, position in ((up_to_milo, encoded.positions[0]), (up_to_luna, encoded.positions[1])):
        assert encoded.ids[0, position] == prefix.ids[0, position]


def test_a_caption_that_does_not_fit_is_refused_and_not_cut(texts: TextTokenizer) -> None:
    caption = "Milo is waving in the meadow. " * 20
    assert texts.count(caption) > 64
    with pytest.raises(ValueError, match="64 fit"):
        texts.encode(caption)


def test_special_tokens_in_a_caption_are_plain_text(tiny_bundle: Path, texts: TextTokenizer) -> None:
    bundle = Bundle.open(tiny_bundle)
    story = LanguageTokenizer(bundle.tokenizer("language_model"), bundle.model.bos_token_id)
    first_image = bundle.model.dimensions.vocab_size - bundle.model.dimensions.image_tokens
    ids = story.encode(" Caption: [IMG0] <s> </s> waves")
    assert max(ids) < first_image
    assert not {0, 1, 2} & set(ids)
    encoded = texts.encode("<|endoftext|> waves")
    assert 1 not in encoded.ids[0, : encoded.tokens - 1]


@pytest.mark.parametrize("caption", ["", "   ", "😀 été 狐", "\x00\t", "a" * 50])
def test_any_text_has_an_encoding(texts: TextTokenizer, caption: str) -> None:
    assert texts.count(caption) >= 2


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="no tokenizer"):
        LanguageTokenizer(tmp_path / "tokenizer.json", 0)
