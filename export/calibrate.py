"""What each component really sees: calibration stories are drawn with the float32 graphs, and listened to.

Knows how to listen to a run and how to choose the range of an activation; drawing is the runtime's business.
"""

import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import train_command
from storyv_lite.components import Component
from storyv_lite.errors import BundleError
from storyv_lite.export.rounding import second_moments
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.backends.base import Backend, CacheStorage, LanguageSession, Session, Tensors
from storyv_lite.runtime.backends.relay import Relay
from storyv_lite.runtime.model import Model
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story

Feed = Mapping[str, NDArray[Any]]
Calibration = Mapping[Component, list[Feed]]

STORIES, FRAMES = 4, 3  # enough to calibrate with; activations of more of them look the same
KEPT_FEEDS = 64  # calls kept per component, drawn by lot from all of them
KEPT_VALUES = 4096  # values of one tensor and one call that its range is chosen from
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # candidate ranges, as parts of the whole


def read_stories(checkpoint: Path) -> list[dict[str, Any]]:
    """What training left to calibrate with. Raises `BundleError` where it is missing or damaged."""
    file = checkpoint / "calibration.jsonl"
    if not file.is_file():
        raise BundleError(f"`{file}` is missing; export draws its stories", hint=train_command(checkpoint))
    try:
        stories = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as fault:
        raise BundleError(
            f"`{file}` is damaged: {fault}", hint="take it from a backup, or train anew"
        ) from fault
    if not stories:
        raise BundleError(f"`{file}` holds no story", hint=train_command(checkpoint))
    return stories


def calibrate(
    wide: Path,
    stories: Sequence[Mapping[str, Any]],
    progress: Callable[[str], None],
    wanted: Collection[Component] = tuple(Component),
    kept: Collection[Component] | None = None,
) -> Calibration:
    """Inputs of every `wanted` graph while `stories` are drawn with the bundle `wide`.

    Of its components `kept` stay loaded; None: all of them.
    """
    # one thread sums in one order: equal exports have equal bytes
    listener = Listener(open_backend("cpu", threads=1), wanted)
    pipeline = StoryPipeline(Bundle.open(wide, verify=False), listener)
    pipeline.model = Model(pipeline.bundle, listener, kept)
    for index, story in enumerate(stories):
        progress(f"draw calibration story {index + 1} of {len(stories)}")
        captions = tuple(Caption(text) for text in story["captions"][:FRAMES])
        for _ in pipeline.draw(Story(captions), seed=int(story.get("seed", index))):
            pass
        for caption in story["original"][:FRAMES]:  # names spelled out: the encoders of characters run too
            pipeline.model.portraits(caption)
    pipeline.close()
    return listener.feeds


class Listener(Relay):
    """A backend that remembers what the `wanted` components of another were fed."""

    def __init__(self, backend: Backend, wanted: Collection[Component] = tuple(Component)) -> None:
        super().__init__(backend, self._run, self._read)
        self._wanted = frozenset(wanted)
        self.feeds: dict[Component, list[Feed]] = {}
        self._calls: dict[Component, int] = {}
        self._lot = random.Random(0)

    def hear(self, component: Component, feed: Feed) -> None:
        """Keep a feed; beyond `KEPT_FEEDS`, each call so far has the same chance to be among the kept."""
        feeds = self.feeds.setdefault(component, [])
        self._calls[component] = calls = self._calls.get(component, 0) + 1
        place = len(feeds) if len(feeds) < KEPT_FEEDS else self._lot.randrange(calls)
        if place < KEPT_FEEDS:
            feeds[place : place + 1] = [{name: np.array(array) for name, array in feed.items()}]

    def _run(self, component: Component, session: Session, inputs: Feed) -> Tensors:
        if component in self._wanted:
            self.hear(component, inputs)
        return session.run(inputs)

    def _read(
        self,
        session: LanguageSession,
        inputs_embeds: NDArray[np.float32],
        storage: CacheStorage,
        past_length: int,
    ) -> NDArray[np.float32]:
        if Component.LANGUAGE_MODEL not in self._wanted:
            return session.read(inputs_embeds, storage, past_length)
        feed: dict[str, NDArray[Any]] = {"inputs_embeds": inputs_embeds}
        feed["attention_mask"] = np.ones((1, past_length + inputs_embeds.shape[1]), dtype=np.int64)
        for name, tensor in storage.to_host(past_length).items():
            part, layer = name.split(".")
            feed[f"past_key_values.{layer}.{part}"] = tensor[:, :, :past_length]
        self.hear(Component.LANGUAGE_MODEL, feed)
        return session.read(inputs_embeds, storage, past_length)


def activation_ranges(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, tuple[float, float]]:
    """The range of each tensor in which 8 bits lose least, over all feeds; empty for no tensors."""
    samples: dict[str, list[NDArray[Any]]] = {name: [] for name in tensors}
    for seen in inner_tensors(model, tensors, feeds):
        for name in tensors:
            values = seen[name].ravel()
            kept = values[:: max(1, values.size // KEPT_VALUES)]
            samples[name].append(np.concatenate([kept, [values.min(), values.max()]]))
    return {name: choose_range(np.concatenate(parts)) for name, parts in samples.items()}


def input_moments(
    model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, NDArray[np.float64]]:
    """Second moments (K, K) of each tensor (..., K) over all feeds; empty for no tensors."""
    moments: dict[str, NDArray[np.float64]] = {}
    for seen in inner_tensors(model, tensors, feeds):
        for name in tensors:
            rows = seen[name].reshape(-1, seen[name].shape[-1])
            moments[name] = moments.get(name, 0) + second_moments(rows)
    return moments


def inner_tensors(model: onnx.ModelProto, tensors: Sequence[str], feeds: Sequence[Feed]) -> Iterator[Feed]:
    """For each feed the values of `tensors` in the graph; nothing for no tensors."""
    if not tensors:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    taken = {value.name for value in probe.graph.input}
    inner = [name for name in tensors if name not in taken]
    given = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in given)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for feed in feeds:
        yield {**feed, **dict(zip(inner, session.run(inner, dict(feed)) if inner else [], strict=True))}


def run_graph(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[NDArray[Any]]:
    """The first output of the graph for each feed."""
    name = model.graph.output[0].name
    return [seen[name] for seen in inner_tensors(model, [name], feeds)]


def choose_range(values: NDArray[Any]) -> tuple[float, float]:
    """The part of the values' range with the least squared error in 8 bits, cut values included."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)

    def error(part: float) -> float:
        scale = max((high - low) * part / 255.0, 1e-8)
        rounded = np.clip(np.rint(values / scale), np.rint(low * part / scale), np.rint(high * part / scale))
        return float(np.square(rounded * scale - values).sum())

    best = min(SHRINK, key=error)
    return low * best, high * best
