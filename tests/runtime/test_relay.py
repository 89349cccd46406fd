"""A backend that is listened to."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import CacheStorage, LanguageSession, Session, Tensors
from storyv_lite.runtime.backends.relay import Relay
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Story

STORY = Story.from_text("Milo is waving.\nHe is sitting.")
Floats = NDArray[np.float32]


def test_a_story_is_the_same_through_a_relay_and_every_call_is_heard(tiny_bundle: Path) -> None:
    heard: Counter[Component] = Counter()

    def run(component: Component, session: Session, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        heard[component] += 1
        return session.run(inputs)

    def read(session: LanguageSession, embeds: Floats, storage: CacheStorage, past: int) -> Floats:
        heard[Component.LANGUAGE_MODEL] += 1
        return session.read(embeds, storage, past)

    backend, bundle = open_backend("cpu", threads=1), Bundle.open(tiny_bundle)
    relayed = [frame.image for frame in StoryPipeline(bundle, Relay(backend, run, read)).draw(STORY)]
    plain = [frame.image for frame in StoryPipeline(bundle, backend).draw(STORY)]
    assert np.array_equal(relayed, plain)
    assert heard[Component.LANGUAGE_MODEL] == heard[Component.VAE_DECODER] == 2
    assert heard[Component.VISION_ENCODER] == 1, "the last picture is looked at by nobody"


def test_what_a_relay_answers_is_what_is_drawn(tiny_bundle: Path) -> None:
    def negative(component: Component, session: Session, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        answers = session.run(inputs)
        image = component is Component.VAE_DECODER
        return {name: 1 - array for name, array in answers.items()} if image else answers

    backend, bundle = open_backend("cpu", threads=1), Bundle.open(tiny_bundle)
    relay = Relay(backend, negative, lambda session, *call: session.read(*call))
    turned, plain = (next(StoryPipeline(bundle, one).draw(STORY)).image for one in (relay, backend))
    assert np.abs(turned.astype(int) + plain - 255).max() <= 1
