"""ONNX Runtime: one session per part, the provider asked for or an error, cache buffers bound in place.

Settings are fixed, so that equal inputs give equal bytes on one machine: deterministic kernels, sequential
execution, a given number of threads. The CPU arena is off: it keeps every peak it has seen.

Keys and values: graphs whose attention is GroupQueryAttention write new tokens into the buffer that holds the
old ones (past and present are bound to the same memory). Graphs that concatenate refuse that; for them the
cache is copied on every read, and two copies exist for a moment.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, Signature, signature
from storyv_lite.errors import BackendError, BundleError
from storyv_lite.manifest import Variant
from storyv_lite.memory import usable_cores
from storyv_lite.runtime.backends import providers
from storyv_lite.runtime.backends.base import CacheStorage, Session, Tensors, reported
from storyv_lite.runtime.backends.free_size import free_size
from storyv_lite.runtime.backends.parts import Parts

MAX_THREADS = 16  # more of them wait for each other longer than they work
# 8-bit weights before a product are not widened but multiplied in blocks, with activations in 8 bits too: the
# library's default today, said here because pictures depend on it (docs/decisions/0024).
WIDENED_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "4")
_INSPECT = "check the bundle with `storyv-lite inspect`"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph given as bytes


class OrtBackend:
    """Runs ONNX components on one provider."""

    name = "ort"
    precision = "as exported"  # every component of a bundle says its own

    def __init__(
        self,
        provider: str = "cpu",
        reason: str = "asked for",
        threads: int | None = None,
        needed_by: str = "",
    ) -> None:
        """`provider` is one of `providers.PROVIDERS`, `needed_by` what was asked for, if not itself.

        Raises `BackendError` when it does not work here.
        """
        ort.set_default_logger_severity(4)  # what matters is raised; the rest would spoil the progress line
        providers.check(provider, needed_by)
        self.threads = threads or min(usable_cores(), MAX_THREADS)
        self.device, self.reason = "cpu" if provider == "cpu" else "cuda", reason
        self.provider, self._asked = providers.PROVIDERS[provider], provider

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        """Load one component. Raises `BundleError` or `BackendError`."""
        return OrtSession(self._parts(bundle, component, whole), str(component))

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> "OrtLanguageSession":
        """Load the language model. Raises `BundleError` or `BackendError`."""
        wanted = signature(Component.LANGUAGE_MODEL, bundle.model.dimensions)
        return OrtLanguageSession(self._parts(bundle, Component.LANGUAGE_MODEL, whole), wanted, self.device)

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": ort.__version__, "numpy": np.__version__}

    def _parts(self, bundle: Bundle, component: Component, whole: bool) -> Parts:
        wanted = signature(component, bundle.model.dimensions)
        paths = _paths(bundle, bundle.variant(component))
        # providers that build engines build them for the size that a graph says
        free = component is Component.VAE_DECODER and self._asked in ("cpu", "cuda")

        def load(path: str) -> ort.InferenceSession:
            session = self._session(bundle, path, free)
            if len(paths) == 1:
                _check_names(bundle, component, session)
            return session

        return Parts([partial(load, path) for path in paths], [spec.name for spec in wanted.outputs], whole)

    def _session(self, bundle: Bundle, path: str, free: bool) -> ort.InferenceSession:
        """`free`: for pictures of any size, so that they can be decoded in tiles."""
        options = session_options(self.threads)
        if self._asked != "cpu":
            options.add_session_config_entry(*providers.RECORD_NODES)
        try:
            graph: str | bytes = path
            if free:
                options.add_session_config_entry(_WEIGHTS_FOLDER, os.path.dirname(path))
                graph = free_size(Path(path).read_bytes())
            session = providers.make_session(graph, options, self._asked)
        except Exception as fault:  # the library has no common error class
            raise BundleError(
                f"`{path}` cannot be loaded: {str(fault).splitlines()[0]}",
                hint=f"is `{bundle.path}` complete?",
            ) from fault
        check_provider(session, self.provider, path)
        return session


def check_provider(session: ort.InferenceSession, provider: str, path: str) -> None:
    """Raise `BackendError` when a session runs on another provider than the one asked for.

    The library falls back without a word, for the session or for single nodes: a provider that is the first
    and was given no node runs nothing.
    """
    hint = "draw with `--device cpu`"
    if (found := session.get_providers()[0]) != provider:
        raise BackendError(f"`{path}` runs on `{found}`, `{provider}` was asked for", hint)
    if provider == providers.PROVIDERS["cpu"]:
        return
    nodes = providers.nodes_by_provider(session)
    if not nodes.get(provider):
        told = ", ".join(f"{count} on `{name}`" for name, count in nodes.items())
        raise BackendError(f"`{provider}` runs no node of `{path}`: {told}", hint)


def session_options(threads: int) -> ort.SessionOptions:
    """The fixed settings of every session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    # threads that spin while they wait take the core the next component needs
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*WIDENED_PRODUCTS)
    return options


class OrtSession:
    """One component, in one part or several."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts, self._name = parts, name

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        with reported(self._name, _INSPECT):
            return self._parts.run(inputs, _run)

    def close(self) -> None:
        self._parts.close()


@dataclass
class OrtCacheStorage:
    """Keys and values by name; on the CPU numpy arrays, on a device `OrtValue`s of full capacity.

    `shared` buffers are (1, heads, capacity, head_dim), written in place; others hold what was read so far.
    """

    capacity: int
    shared: bool
    buffers: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(
            buffer.nbytes if isinstance(buffer, np.ndarray) else int(buffer.tensor_size_in_bytes())
            for buffer in self.buffers.values()
        )

    def to_host(self, stop: int, start: int = 0) -> Tensors:
        return {name: _numpy(buffer)[:, :, start:stop].copy() for name, buffer in self.buffers.items()}

    def from_host(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        for name, buffer in self.buffers.items():
            kept = tensors[name]
            if not self.shared:
                self.buffers[name] = kept.copy()
                continue
            host = _numpy(buffer)
            host[:, :, : kept.shape[2]] = kept
            if not isinstance(buffer, np.ndarray):
                buffer.update_inplace(host)


class OrtLanguageSession:
    """The language model with its cache bound in place where the graph allows it."""

    def __init__(self, parts: Parts, wanted: Signature, device: str) -> None:
        self._parts, self._device = parts, device
        past = [spec for spec in wanted.inputs if spec.name.startswith("past_key_values.")]
        # short name of each cache tensor by the names it has as input and output
        self._inputs = {spec.name: _short(spec.name) for spec in past}
        self._outputs = {spec.name.replace("past_key_values", "present"): _short(spec.name) for spec in past}
        _, heads, _, head_dim = past[0].axes
        self._heads, self._head_dim = int(heads), int(head_dim)
        self._hidden_size = int(wanted.inputs[0].axes[2])
        self.shares_buffers = self._probe()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        with reported("language_model", _INSPECT):
            return self._parts.run(inputs, _run)

    def new_cache(self, capacity: int) -> OrtCacheStorage:
        shape = (1, self._heads, capacity if self.shares_buffers else 0, self._head_dim)
        make = self._host_buffer if self._device == "cpu" or not self.shares_buffers else self._device_buffer
        return OrtCacheStorage(
            capacity, self.shares_buffers, {short: make(shape) for short in self._inputs.values()}
        )

    def read(
        self, inputs_embeds: NDArray[np.float32], storage: CacheStorage, past_length: int
    ) -> NDArray[np.float32]:
        if not isinstance(storage, OrtCacheStorage) or storage.shared != self.shares_buffers:
            raise TypeError("the cache was made by another kind of session")
        total = past_length + inputs_embeds.shape[1]
        feeds = {"inputs_embeds": inputs_embeds, "attention_mask": np.ones((1, total), dtype=np.int64)}
        if storage.shared:
            return self._read_in_place(feeds, storage)
        for past, short in self._inputs.items():
            feeds[past] = np.ascontiguousarray(storage.buffers[short][:, :, :past_length])
        outputs = self.run(feeds)
        for present, short in self._outputs.items():
            storage.buffers[short] = outputs[present]
        return np.asarray(outputs["last_hidden_state"], dtype=np.float32)

    def close(self) -> None:
        self._parts.close()

    def _read_in_place(self, feeds: Tensors, storage: OrtCacheStorage) -> NDArray[np.float32]:
        buffers = {name: storage.buffers[short] for name, short in (self._inputs | self._outputs).items()}

        def bound(session: ort.InferenceSession, given: Tensors) -> Tensors:
            binding = session.io_binding()
            names = [value.name for value in session.get_outputs()]
            for name, array in given.items():
                if name in buffers:
                    binding.bind_input(name, *self._place(buffers[name]))
                else:
                    binding.bind_cpu_input(name, array)
            for name in names:
                if name in buffers:
                    binding.bind_output(name, *self._place(buffers[name]))
                else:
                    binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            values = zip(names, binding.get_outputs(), strict=True)
            # keys and values are in their buffers already
            return {n: buffers[n] if n in buffers else value.numpy() for n, value in values}

        with reported("language_model", _INSPECT):
            past = {name: buffers[name] for name in self._inputs}
            outputs = self._parts.run({**feeds, **past}, bound)
        return np.asarray(outputs["last_hidden_state"], dtype=np.float32)

    def _place(self, buffer: Any) -> tuple[Any, ...]:
        """Where a cache buffer lies, as a binding wants to be told."""
        if isinstance(buffer, np.ndarray):
            return "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data
        return self._device, 0, np.float32, buffer.shape(), buffer.data_ptr()

    def _probe(self) -> bool:
        """Whether the graph keeps the length of a longer past buffer, as writing in place needs."""
        if self._parts.count > 1:  # only graphs that do are cut
            return True
        past = np.zeros((1, self._heads, 2, self._head_dim), dtype=np.float32)
        feeds: Tensors = {
            "inputs_embeds": np.zeros((1, 1, self._hidden_size), dtype=np.float32),
            "attention_mask": np.ones((1, 1), dtype=np.int64),
        }
        try:
            outputs = self.run({**feeds, **dict.fromkeys(self._inputs, past)})
        except BackendError:  # a graph that adds lengths up finds that they do not fit
            return False
        return all(outputs[present].shape == past.shape for present in self._outputs)

    def _host_buffer(self, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.zeros(shape, dtype=np.float32)  # pages are taken when they are written

    def _device_buffer(self, shape: tuple[int, ...]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32), self._device, 0)


def _paths(bundle: Bundle, variant: Variant) -> list[str]:
    for part in variant.parts:
        if part.data:
            bundle.file(part.data)
    return [str(bundle.file(part.file)) for part in variant.parts]


def _check_names(bundle: Bundle, component: Component, session: ort.InferenceSession) -> None:
    """Raise `BundleError` when a graph does not take and give what the signature table says."""
    wanted = signature(component, bundle.model.dimensions)
    taken = {value.name for value in session.get_inputs()}
    made = {value.name for value in session.get_outputs()}
    inputs, outputs = {spec.name for spec in wanted.inputs}, {spec.name for spec in wanted.outputs}
    if taken != inputs or not outputs <= made:
        raise BundleError(
            f"`{component}` of `{bundle.path}` takes {_list(taken)} and gives {_list(made)}; "
            f"needed are {_list(inputs)} and {_list(outputs)}",
            hint="write the bundle again with `storyv-lite export`",
        )


def _run(session: ort.InferenceSession, given: Tensors) -> Tensors:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


def _list(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _short(name: str) -> str:
    """`past_key_values.3.key` as `key.3`."""
    _, layer, part = name.split(".")
    return f"{part}.{layer}"


def _numpy(buffer: Any) -> NDArray[Any]:
    return buffer if isinstance(buffer, np.ndarray) else np.array(buffer.numpy())
