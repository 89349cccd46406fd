"""What narrow weights cost: each layer rounded alone, and what a component's error does to the picture.

Two measurements, multiplied. A layer's weights are rounded and nothing else; error energy over signal energy
at the component's output, on inputs that calibration gathered. And per component once: its outputs are
disturbed by a known share of their energy while stories are drawn, and the squared error of the pictures over
that share is its price. Errors are taken to add up, which holds while they are small.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.export.calibrate import FRAMES, Feed
from storyv_lite.export.layers import methods_of_layers, rounded_weight
from storyv_lite.quantization import STORAGE, Method
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import Backend, CacheStorage, LanguageSession, Session, Tensors
from storyv_lite.runtime.backends.relay import Relay
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story
from storyv_lite.widths import Layer, Option

MIXED = (Component.LANGUAGE_MODEL, Component.MAPPER, Component.UNET, Component.VAE_DECODER)
WIDTHS = (Method.BLOCK4, Method.WEIGHT_ONLY, Method.HALF)
FEEDS = 3  # per component; evenly taken
SHARE = 1e-3  # of an output's energy, to disturb it with


def measure_layers(
    component: Component, model: onnx.ModelProto, feeds: Sequence[Feed], price: float
) -> list[Layer]:
    """Every layer that can be stored narrow, with bytes and error of each width."""
    names = {tensor.name for tensor in model.graph.input}
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    layers = {width: methods_of_layers(model, width) for width in WIDTHS}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    used = dict.fromkeys(weight for _, weight, method in layers[WIDTHS[0]] if method is not Method.WIDE)
    for name in used:  # an initializer that is an input too may be replaced in a call
        dims = tensors[name].dims
        open_model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensors[name].data_type, dims))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        open_model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    output = model.graph.output[0].name
    kept = [{n: a for n, a in feed.items() if n in names} for feed in feeds[:: max(1, len(feeds) // FEEDS)]]
    kept = kept[:FEEDS]
    references = [session.run([output], dict(feed))[0].astype(np.float64) for feed in kept]
    signal = sum(float(np.square(reference).sum()) for reference in references)
    nodes = {node.name: node for node in model.graph.node}
    found = []
    for place, (name, weight, narrowest) in enumerate(layers[WIDTHS[0]]):
        if narrowest is Method.WIDE:
            continue
        choices: list[Option] = []
        for method in dict.fromkeys(layers[width][place][2] for width in WIDTHS):
            if method is Method.WIDE:
                continue
            value, size = rounded_weight(nodes[name], numpy_helper.to_array(tensors[weight]), method)
            answers = (session.run([output], {**feed, weight: value})[0] for feed in kept)
            noise = sum(float(np.square(a - r).sum()) for a, r in zip(answers, references, strict=True))
            choices.append(Option(STORAGE[method].bits, size, price * noise / signal))
        found.append(Layer(component, name, tuple(choices)))
    return found


def prices(wide: Path, stories: Sequence[Mapping[str, Any]]) -> dict[Component, float]:
    """Squared error of pictures in [0, 1] over the share of energy that a component's output is wrong by.

    The mean over the frames of all `stories`: what one story forgives, another does not.
    """
    bundle = Bundle.open(wide, verify=False)
    backend: Backend = open_backend("cpu", threads=1)

    def draw(wrong: Component | None) -> NDArray[np.float64]:
        pipeline = StoryPipeline(bundle, _disturbed(backend, wrong) if wrong else backend)
        pictures = [
            frame.image
            for story in stories
            for frame in pipeline.draw(
                Story(tuple(Caption(text) for text in story["captions"][:FRAMES])),
                seed=int(story.get("seed", 0)),
            )
        ]
        pipeline.close()
        return np.stack(pictures) / 255.0

    right = draw(None)
    return {part: float(np.square(draw(part) - right).mean()) / SHARE for part in MIXED}


def _disturbed(backend: Backend, wrong: Component) -> Backend:
    """A backend that adds noise, the same in every call, to what one component answers."""

    def run(component: Component, session: Session, inputs: Feed) -> Tensors:
        answers = session.run(inputs)
        return {n: disturb(a) for n, a in answers.items()} if component is wrong else answers

    def read(
        session: LanguageSession,
        inputs_embeds: NDArray[np.float32],
        storage: CacheStorage,
        past_length: int,
    ) -> NDArray[np.float32]:
        states = session.read(inputs_embeds, storage, past_length)
        return disturb(states) if wrong is Component.LANGUAGE_MODEL else states

    return Relay(backend, run, read)


def disturb(answer: NDArray[Any]) -> NDArray[np.float32]:
    """`answer` with noise of `SHARE` of its energy; equal shapes get equal patterns."""
    noise = np.random.default_rng(0).standard_normal(answer.shape, dtype=np.float32)
    size = np.sqrt(SHARE * np.square(answer.astype(np.float64)).mean())
    disturbed: NDArray[np.float32] = (answer + size * noise).astype(np.float32)
    return disturbed
