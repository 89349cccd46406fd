"""A bundle's components as verbs: what each one turns into what, loaded when it is needed.

Knows names and shapes of inputs and outputs; not the order in which a story needs them.
"""

import hashlib
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import TORCH
from storyv_lite.components import Component
from storyv_lite.prompt import Segment
from storyv_lite.runtime.backends.base import Backend, Session, Tensors
from storyv_lite.runtime.context_size import bytes_per_token, computed_width, stored_width
from storyv_lite.runtime.images import Pixels, pixel_values, read_portrait, to_pixels
from storyv_lite.runtime.kv_cache import Piece
from storyv_lite.runtime.language import Language, make_piece
from storyv_lite.runtime.residency import Residency
from storyv_lite.runtime.soundness import check_sound
from storyv_lite.runtime.tiles import decode_tiles
from storyv_lite.runtime.token_table import open_table
from storyv_lite.runtime.tokenizer import LanguageTokenizer, TextTokenizer, mentions

Floats = NDArray[np.float32]


class Model:
    """The components of one bundle on one backend."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        kept: Collection[Component] | None = None,
        whole: Collection[Component] = (),
    ) -> None:
        """`kept` stay loaded once they are; None: all of them. All parts of `whole` are there at once."""
        self.bundle = bundle
        self.backend = backend
        self.dims = bundle.model.dimensions
        self.residency = Residency(bundle, backend, kept, whole)

    def session(self, component: Component) -> Session:
        """The component, loaded until `close`; raises `BundleError` or `BackendError`."""
        return self.residency.load(component)

    def close(self) -> None:
        """Unload every component; the next verb loads what it needs again."""
        self.residency.close()
        self.__dict__.pop("language", None)

    def text_states(self, caption: str) -> Floats:
        """A plain caption as conditioning, (1, text_tokens, cross_attention_dim)."""
        ids = self.text_tokenizer.encode(caption).ids
        states: Floats = self._run(Component.TEXT_ENCODER, {"input_ids": ids})["hidden_states"]
        return states

    @cached_property
    def null_states(self) -> Floats:
        """The empty caption, the same for every frame of every story."""
        return self.text_states("")

    def portraits(self, caption: str) -> Floats:
        """A caption with the portraits of the characters it names fused in (specification A.3)."""
        encoded = self.text_tokenizer.encode(caption, self.cast)
        states = self.text_states(caption)
        if not encoded.names:
            return states
        pixels = [self._portrait(name) for name in encoded.names]
        feed = {"pixel_values": np.concatenate(pixels)}
        embeds = self._run(Component.CHARACTER_ENCODER, feed)["image_embeds"]
        inputs = {"hidden_states": states, "image_embeds": embeds, "positions": encoded.positions}
        fused: Floats = self._run(Component.FUSION, inputs)["fused_states"]
        return fused

    def map(self, image_states: Floats) -> Floats:
        """States of the [IMG] tokens (image_tokens, hidden) as conditioning (1, text_tokens, width)."""
        mapped = self._run(Component.MAPPER, {"image_states": image_states[None]})
        conditioning: Floats = mapped["encoder_hidden_states"]
        return conditioning

    def decode(self, latents: Floats, tile: int = 0) -> Pixels:
        """Latents (1, channels, size, size) as a picture (H, W, 3); in tiles of `tile` cells, 0 for whole.

        Raises `FrameError` when it holds NaN or is of one colour.
        """
        with self.residency.use(Component.VAE_DECODER) as decoder:
            image = decode_tiles(
                lambda part: decoder.run({"latents": part})["image"], latents, tile or self.dims.latent_size
            )
        check_sound(Component.VAE_DECODER, image)
        pixels = to_pixels(image)
        check_sound(Component.VAE_DECODER, pixels)
        return pixels

    def look(self, image: Pixels) -> Floats:
        """The pixels of a finished frame as visual tokens (visual_tokens, hidden)."""
        pixels = pixel_values(image, self.dims.vision_image_size)
        tokens = self._run(Component.VISION_ENCODER, {"pixel_values": pixels})["visual_tokens"]
        first: Floats = tokens[0]
        return first

    def piece(self, frame: int, segments: tuple[Segment, ...], visual: Floats | None = None) -> Piece:
        """Segments of the prompt as tokens."""
        return make_piece(frame, segments, self.story_tokenizer, self.dims, visual)

    def named(self, caption: str) -> frozenset[str]:
        """The characters of the cast that a caption names; without any it refers back."""
        return frozenset(mention.name for mention in mentions(caption, self.cast))

    def names_place(self, caption: str) -> bool:
        """Whether a caption says where the story is, by a word that the model knows as a place."""
        return bool(mentions(caption, self.bundle.vocabulary.get("places", ())))

    @cached_property
    def cast(self) -> dict[str, str]:
        """Names of the characters, each with the file of its portrait."""
        return {character.name: character.portrait.file for character in self.bundle.characters}

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.bundle.tokenizer("text_encoder"), self.dims.text_tokens)

    @cached_property
    def story_tokenizer(self) -> LanguageTokenizer:
        return LanguageTokenizer(self.bundle.tokenizer("language_model"), self.bundle.model.bos_token_id)

    @cached_property
    def language(self) -> Language:
        """The language model, its token table memory-mapped."""
        session = self.residency.language_session()
        table = self.bundle.variant(Component.TOKEN_EMBEDDING, "table").parts[0].file
        rows = open_table(self.bundle.file(table), self.dims.vocab_size, self.dims.hidden_size)
        width, model = computed_width(self.backend.precision, self.backend.device), self.language_sha256
        return Language(session, self.story_tokenizer, rows, self.dims, width, model)

    def token_bytes(self, kv_cache: str | None) -> int:
        """What a token takes in the cache; `kv_cache` as `stored_width` takes it. Raises `ConfigError`."""
        width = stored_width(kv_cache, self.backend.precision, self.backend.device)
        return bytes_per_token(self.dims, width)

    @property
    def language_sha256(self) -> str:
        """One hash of the files that make keys and values, and of how wide they are computed with."""
        variant = self.bundle.variant
        graphs = TORCH if self.backend.name == TORCH else "onnx"
        used = variant(Component.LANGUAGE_MODEL, graphs), variant(Component.TOKEN_EMBEDDING, "table")
        hashes = [digest for one in used for part in one.parts for digest in (part.sha256, part.data_sha256)]
        return hashlib.sha256(" ".join([self.backend.precision, *filter(None, hashes)]).encode()).hexdigest()

    def _run(self, component: Component, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        with self.residency.use(component) as session:
            return session.run(inputs)

    def _portrait(self, name: str) -> Floats:
        return pixel_values(read_portrait(self.bundle.file(self.cast[name])), self.dims.vision_image_size)
