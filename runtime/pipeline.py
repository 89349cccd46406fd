"""The story loop: captions in, frames out, each as soon as it is finished.

Knows the order of things (specification D) and who hands what to whom; what a component does is `model`'s
business, how noise becomes latents `denoiser`'s, what a prompt looks like `prompt`'s. Components are loaded
when first needed and shared by all stories of a pipeline; each story owns its cache.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle, find_bundle
from storyv_lite.checkpoint import find_checkpoint, open_checkpoint
from storyv_lite.components import Component
from storyv_lite.errors import ConfigError, StoryError
from storyv_lite.manifest import Context
from storyv_lite.memory import give_back_freed_memory, take_peak
from storyv_lite.runtime.backends import open_backend, open_torch_backend
from storyv_lite.runtime.backends.base import Backend
from storyv_lite.runtime.context_size import parse_tokens
from storyv_lite.runtime.denoiser import Conditioning, draw_latents, frame_generator
from storyv_lite.runtime.footprint import WIDE
from storyv_lite.runtime.images import Pixels
from storyv_lite.runtime.latents import LatentStore
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.phases import LOAD
from storyv_lite.runtime.plan import MemoryPlan, narrowed
from storyv_lite.runtime.schedulers import NoiseSchedule, SamplerTable, sampler_table
from storyv_lite.runtime.soundness import check_sound
from storyv_lite.runtime.story_context import Reading, StoryContext, check_room
from storyv_lite.runtime.tiles import check_tile
from storyv_lite.story import Caption, Story

CONTEXTS = ("interleaved", "captions", "none")  # what a frame is drawn after; all but the first for measuring

_TO_DRAW: Pixels = np.empty((0, 0, 3), np.uint8)  # stands where there is no picture yet
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


@dataclass(frozen=True)
class Frame:
    """One finished frame."""

    index: int  # from 0
    image: Pixels  # (H, W, 3)
    caption: str
    seed: int
    conditioning: str  # "story": by the language model | "portraits": the caption fused with its characters
    timings_ms: dict[str, float]  # per phase; loading a component counts in the phase that needs it first
    peaks: dict[str, int]  # per phase, the most bytes the process held; empty where the system cannot say
    reading: Reading  # what the language model read for it, and behind what

    @property
    def tokens_read(self) -> int:
        """By the language model, for this frame."""
        return self.reading.tokens

    @property
    def context(self) -> tuple[int, ...]:
        """Finished frames that it was drawn after."""
        return self.reading.context

    @property
    def reduced(self) -> bool:
        """Some finished frames were left out, because a long story does not fit the context."""
        return self.reading.reduced


@dataclass(frozen=True)
class Progress:
    """Where the drawing stands: `step` of `steps` in one phase of one frame."""

    frame: int  # from 0
    frames: int
    phase: str  # "read" | "draw" | "decode"
    step: int = 0
    steps: int = 1


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Settings:
    """What a story is drawn with, all defaults filled in; belongs into the receipt."""

    seed: int
    sampler: str
    num_inference_steps: int
    guidance_scale: float
    timestep_spacing: str
    context_tokens: int | None = None  # that the language model may hold; None for the bundle's limit
    kv_cache: str | None = None  # width of stored keys and values; None for as they are computed
    spell_out: bool = False  # finished frames whose captions leave names out are told with them


@dataclass
class _Clock:
    """Milliseconds and peak bytes per phase of one frame."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        take_peak()  # what was before is no part of the phase
        start = time.perf_counter()
        yield
        self.timings_ms[phase] = (time.perf_counter() - start) * 1000
        if (peak := take_peak()) is not None:
            self.peaks[phase] = peak


class StoryPipeline:
    """A bundle on a device, ready to draw stories."""

    def __init__(
        self, bundle: Bundle, backend: Backend, reason: str = "given", batched: bool = True, tile: int = 0
    ) -> None:
        """`reason` says why this bundle; without `batched` guidance takes two passes and half the memory.

        Latents of more than `tile` cells are decoded in tiles, seams blended; 0 decodes pictures whole.
        Raises `ConfigError`.
        """
        check_tile(tile)
        self.bundle = bundle
        self.backend = backend
        self.reason = reason
        self.batched = batched
        self.tile = tile
        self.model = Model(bundle, backend)
        self.plan: MemoryPlan | None = None

    def obey(self, plan: MemoryPlan) -> None:
        """Load, unload, guide and decode as planned from now on. What is loaded is unloaded."""
        self.close()
        self.plan = plan
        self.bundle = narrowed(self.bundle, plan.choice)
        self.batched, self.tile = plan.choice.batched, plan.choice.tile
        kept = plan.choice.kept if plan.budget.limited else None
        self.model = Model(self.bundle, self.backend, kept, plan.choice.whole)

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | None = None,
        device: str = "auto",
        threads: int | None = None,
        batched: bool = True,
        provider: str = "auto",
        tile: int = 0,
    ) -> "StoryPipeline":
        """Open a bundle: `path`, else the newest in `./bundles`, else the one that ships.

        Every file is verified. Raises `BundleError` and `BackendError`.
        """
        found, reason = find_bundle(path)
        return cls(Bundle.open(found), open_backend(device, threads, provider), reason, batched, tile)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        batched: bool = True,
        tile: int = 0,
    ) -> "StoryPipeline":
        """Draw with a checkpoint as it is, by PyTorch; `path` may be a name in `./checkpoints`.

        `precision` is fp32, bf16, fp16, int8 or nf4, None for fp32 on the CPU and fp16 on CUDA. Raises
        `MissingDependency`, `ConfigError`, `BundleError` and `BackendError`.
        """
        found, backend = find_checkpoint(path), open_torch_backend(device, precision, threads)
        return cls(open_checkpoint(found), backend, "asked for", batched, tile)

    def draw(
        self,
        story: Story,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        on_progress: OnProgress | None = None,
        context: str = "interleaved",
        finished: Iterable[Pixels | None] = (),
        latents: LatentStore | None = None,
        context_size: str | int | None = None,
        kv_cache: str | None = None,
        spell_out: bool = False,
    ) -> Iterator[Frame]:
        """Draw a story frame by frame; what is not given comes from the bundle.

        `finished` are the pictures of the first frames, where they are there already, (H, W, 3) each. They
        are looked at and read as they were when they had just been drawn, so that the language model comes
        to the same states bit for bit; the frames behind them are drawn. None is a frame that failed: it is
        neither read nor remembered.

        Into `latents` goes what was drawn before it is decoded; a frame that is found there is not drawn, but
        decoded.

        `context` is for measuring what it is worth: "captions" keeps the pictures of finished frames from the
        language model, "none" draws every frame by itself, from its caption and the portraits.

        `context_size` caps what the language model holds of the story, in tokens or as text (`2000`,
        `512MiB`); `kv_cache` is the width in which that is stored: fp32, fp16 or int8. With
        `spell_out` finished frames whose captions leave names out are told as the language model writes them.
        Everything is checked before the first frame is begun. Raises `StoryError` and `ConfigError`.
        """
        settings = self.settings(seed, num_inference_steps, guidance_scale, context_size, kv_cache, spell_out)
        self.check(story, settings)
        if context not in CONTEXTS:
            raise ConfigError(f"there is no context `{context}`", hint=f"contexts are {', '.join(CONTEXTS)}")
        told = on_progress or (lambda progress: None)
        return self._frames(story.captions, settings, self._table(settings), told, context, finished, latents)

    def settings(
        self,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        context_size: str | int | None = None,
        kv_cache: str | None = None,
        spell_out: bool = False,
    ) -> Settings:
        """Fill in the bundle's defaults. Raises `ConfigError`."""
        default = self.bundle.model.sampler
        guidance = default.guidance_scale if guidance_scale is None else guidance_scale
        if seed < 0:
            raise ConfigError(f"the seed is {seed}; 0 or more is needed", hint="give another with `--seed`")
        if not 0 <= guidance <= 100:
            raise ConfigError(
                f"the guidance scale is {guidance}; 0 to 100 is needed", hint="give another with `--guidance`"
            )
        steps = default.num_inference_steps if num_inference_steps is None else num_inference_steps
        token_bytes = self.model.token_bytes(kv_cache)
        tokens = parse_tokens(context_size, token_bytes) if isinstance(context_size, str) else context_size
        width = self.kv_cache(kv_cache)
        spacing = default.timestep_spacing
        return Settings(seed, default.name, steps, float(guidance), spacing, tokens, width, spell_out)

    def kv_cache(self, asked: str | None) -> str | None:
        """The width in which keys and values are kept: the one asked for, else the plan's, else None."""
        if asked is None and self.plan is not None and self.plan.choice.kv_width != WIDE:
            return self.plan.choice.kv_width
        return asked

    def check(self, story: Story, settings: Settings | None = None) -> None:
        """Raise `StoryError` naming every frame whose caption the model cannot read whole; nothing is cut.

        Raises `ConfigError` when the context of `settings` has no room for a frame and the one before it, or
        for steps that the sampler does not take.
        """
        if not story.captions:
            raise StoryError("the story has no captions", hint="write one sentence per frame")
        limit = self.bundle.model.dimensions.text_tokens
        counts = [self.model.text_tokenizer.count(caption.text) for caption in story.captions]
        long = [f"frame {i} needs {count}" for i, count in enumerate(counts, 1) if count > limit]
        if long:
            raise StoryError(
                f"the model reads {limit} tokens per caption: {', '.join(long)}",
                hint="make the caption shorter, or split it into two sentences",
            )
        if settings is None:
            return
        self._table(settings)  # steps that the sampler does not take
        if settings.context_tokens is not None:
            held = (settings.context_tokens, settings.kv_cache, settings.spell_out)
            check_room(self.model, story.captions, *held)

    def limits(self, settings: Settings) -> Context:
        """How much of a story the language model holds at most: the bundle's limits, or less where asked."""
        own = self.bundle.model.context
        tokens = own.tokens if settings.context_tokens is None else settings.context_tokens
        return Context(min(tokens, own.tokens), own.frames)

    def unknown_words(self, story: Story) -> tuple[str, ...]:
        """Words of the story that the model has not learned, lower case, in order of appearance."""
        known = set(self.bundle.vocabulary.get("words", ()))
        texts = (caption.text.lower().replace("’", "'") for caption in story.captions)
        words = dict.fromkeys(word for text in texts for word in _WORD.findall(text))
        return tuple(word for word in words if not {word, word.removesuffix("'s").rstrip("'")} & known)

    def close(self) -> None:
        """Unload every component."""
        self.model.close()

    def _frames(
        self,
        captions: tuple[Caption, ...],
        settings: Settings,
        table: SamplerTable,
        told: OnProgress,
        known: str,
        finished: Iterable[Pixels | None],
        saved: LatentStore | None,
    ) -> Iterator[Frame]:
        """The loop of specification D.1; a picture is looked at once, when the next frame needs it."""
        loading = _Clock()
        if self.plan is not None and self.plan.choice.prewarm:
            with loading(LOAD):
                self.model.residency.prewarm()
        limits = self.limits(settings)
        pictures, held = known == "interleaved", (settings.kv_cache, settings.spell_out)
        context = StoryContext(self.model, captions, pictures, limits, *held)
        there = iter(finished)
        latest: tuple[int, Pixels] | None = None  # a picture that nobody has looked at yet
        for index, caption in enumerate(captions):
            image = next(there, _TO_DRAW)
            if image is None:
                continue
            clock, loading = loading, _Clock()
            told(Progress(index, len(captions), "read"))
            if latest is not None and known != "none":
                with clock("look"):
                    context.remember(latest[0], captions[latest[0]].text, latest[1])
            states, reading = None, Reading()
            if known != "none" and (index > 0 or self.bundle.model.first_frame != "char_ldm"):
                with clock("read"):
                    states, reading = context.read(index, caption.text)
                    check_sound(Component.LANGUAGE_MODEL, states)
            if image is _TO_DRAW:
                seed = settings.seed if caption.seed is None else caption.seed
                latents = saved.get(index) if saved else None
                if latents is None:
                    with clock("portraits" if states is None else "map"):
                        story = (
                            self.model.portraits(caption.text) if states is None else self.model.map(states)
                        )
                        check_sound(Component.FUSION if states is None else Component.MAPPER, story)
                    with clock("text"):
                        conditioning = self._conditioning(caption.text, story)
                    with clock("draw"):
                        latents = self._draw(conditioning, settings, table, seed, index, len(captions), told)
                    if saved:
                        saved.put(index, latents)
                told(Progress(index, len(captions), "decode"))
                with clock("decode"):
                    image = self.model.decode(latents, self.tile)
                kind = "portraits" if states is None else "story"
                times, peaks = clock.timings_ms, clock.peaks
                give_back_freed_memory()  # or its holes grow from frame to frame, for as long as a story is
                yield Frame(index, image, caption.text, seed, kind, times, peaks, reading)
            latest = index, image

    def _conditioning(self, caption: str, story: NDArray[np.float32]) -> Conditioning:
        """What one frame is drawn from; the plain caption is encoded only when an evaluation sees it."""
        merge = self.bundle.model.merge_step
        step = merge.named if self.model.named(caption) else merge.reference
        null = self.model.null_states
        return Conditioning(null, self.model.text_states(caption) if step >= 0 else null, story, step)

    def _draw(
        self,
        conditioning: Conditioning,
        settings: Settings,
        table: SamplerTable,
        seed: int,
        index: int,
        frames: int,
        told: OnProgress,
    ) -> NDArray[np.float32]:
        dims = self.bundle.model.dimensions
        with self.model.residency.use(Component.UNET) as unet:
            latents = draw_latents(
                unet,
                table,
                conditioning,
                settings.guidance_scale,
                frame_generator(seed, index),
                (dims.latent_channels, dims.latent_size, dims.latent_size),
                self.batched,
                lambda step, steps: told(Progress(index, frames, "draw", step, steps)),
            )
        check_sound(Component.UNET, latents)
        return latents

    def _table(self, settings: Settings) -> SamplerTable:
        model = self.bundle.model
        schedule = NoiseSchedule.from_config(model.scheduler, model.prediction_type)
        return sampler_table(
            settings.sampler, schedule, settings.num_inference_steps, settings.timestep_spacing
        )
