"""PyTorch: a checkpoint's weights as they are stored, in the precision asked for, on the CPU or on CUDA.

The language model is the large part, so it alone is quantized (`int8`, `nf4`); what else a story needs is in
16 bits on CUDA and in 32 on the CPU. A precision that a device cannot compute in is refused, never replaced.
Convolutions are laid out channels last. On CUDA nothing is rounded to 19 bits, and no kernel is chosen by a
race that another run may end otherwise.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import TORCH
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BackendError, ConfigError
from storyv_lite.memory import usable_cores
from storyv_lite.modeling.components import build
from storyv_lite.modeling.loading import NOT_THE_BACKBONE, load_onto
from storyv_lite.modeling.quantized import QUANTIZED, quantizer
from storyv_lite.optional import require
from storyv_lite.runtime.backends.base import CacheStorage, Tensors, reported

WIDE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = (*WIDE, *QUANTIZED)
DEFAULT_PRECISION = {"cpu": "fp32", "cuda": "fp16"}


class TorchBackend:
    """Runs the components of a checkpoint on one device."""

    name = TORCH

    def __init__(
        self, device: str = "auto", precision: str | None = None, threads: int | None = None
    ) -> None:
        """Choose device and precision (None: fp32 on the CPU, fp16 on CUDA).

        `threads` holds for the whole process. Raises `ConfigError` for an unknown word, `BackendError` for a
        device that is not there or a precision that it cannot compute in, `MissingDependency`.
        """
        if precision is not None and precision not in PRECISIONS:
            raise ConfigError(
                f"`{precision}` is no precision; one of {', '.join(PRECISIONS)} is needed",
                hint="draw with `--precision nf4`",
            )
        problem = _cuda_problem()
        if device == "cuda" and problem:
            raise BackendError(
                f"`cuda` was asked for and does not work: {problem}", hint="draw with `--device cpu`"
            )
        self.device, self.reason = device, "asked for"
        if device == "auto":
            self.device = "cpu" if problem else "cuda"
            self.reason = f"no CUDA: {problem}" if problem else "a CUDA device works"
        self.precision = precision or DEFAULT_PRECISION[self.device]
        self.provider = (
            torch.cuda.get_device_name() if self.device == "cuda" else torch.backends.cpu.get_cpu_capability()
        )
        self.threads = threads or usable_cores()
        self._device = torch.device(self.device)
        self._dtype = WIDE.get(self.precision, WIDE[DEFAULT_PRECISION[self.device]])
        _check_dtype(self._dtype, self._device)
        if self.precision in QUANTIZED:
            require("bitsandbytes", "torch")  # now, not when the first frame is begun
        torch.set_num_threads(self.threads)

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> "TorchSession":
        """Load one component, which is one in any case. Raises `BundleError` or `BackendError`."""
        return TorchSession(self._module(bundle, component), component, bundle.model.dimensions)

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> "TorchLanguageSession":
        """Load the language model, layer by layer. Raises `BundleError` or `BackendError`."""
        component = Component.LANGUAGE_MODEL
        return TorchLanguageSession(self._module(bundle, component), component, bundle.model.dimensions)

    def versions(self) -> dict[str, str]:
        names = ["torch", "transformers", "diffusers", "numpy"]
        if self.precision in QUANTIZED:
            names.append("bitsandbytes")
        return {name: metadata.version(name) for name in names}

    def _module(self, bundle: Bundle, component: Component) -> nn.Module:
        bundle.variant(component, TORCH)  # a bundle of graphs is refused here
        load = partial(load_onto, device=self._device, dtype=self._dtype)
        if component is Component.LANGUAGE_MODEL:
            quantize = None
            if self.precision in QUANTIZED:
                quantize = quantizer(self.precision, self._device, self._dtype)
            load = partial(load, quantize=quantize, without=NOT_THE_BACKBONE)
        with _reported(str(component)):
            module = build(component, bundle.path, bundle.model.dimensions, load)
            if component in (Component.UNET, Component.VAE_DECODER):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module


class TorchSession:
    """One component: numpy goes in and comes out, in between it is the device's."""

    def __init__(self, module: nn.Module, component: Component, dims: Dimensions) -> None:
        self._module: Any = module
        self._component = str(component)
        self._signature = signature(component, dims)
        self._weight: Tensor = next(p for p in module.parameters() if p.is_floating_point() and not p.is_meta)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        tensors = [self._tensor(inputs[spec.name]) for spec in self._signature.inputs]
        with _computing(self._component, self._weight.device):
            answer = self._open()(*tensors)
            answers = answer if isinstance(answer, tuple) else (answer,)
            return {
                spec.name: _numpy(t.float()) for spec, t in zip(self._signature.outputs, answers, strict=True)
            }

    def close(self) -> None:
        device, self._module, self._weight = self._weight.device, None, torch.empty(0)
        gc.collect()  # modules may hold on to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _open(self) -> Any:
        if self._module is None:
            raise RuntimeError("the session is closed")
        return self._module

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        wanted = self._weight.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._weight.device, wanted)


class TorchCacheStorage:
    """Keys and values per layer, (1, heads, capacity, head_dim) on the device, written in place."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], capacity: int) -> None:
        self.layers = layers
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for layer in self.layers for buffer in layer)

    def to_host(self, stop: int, start: int = 0) -> Tensors:
        return {name: _numpy(buffer[:, :, start:stop]).copy() for name, buffer in self._named()}

    def from_host(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        for name, buffer in self._named():
            kept = torch.from_numpy(tensors[name])
            buffer[:, :, : kept.shape[2]] = kept.to(buffer.device, buffer.dtype)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for index, (keys, values) in enumerate(self.layers):
            yield f"key.{index}", keys
            yield f"value.{index}", values


class _BoundLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed here
    """One layer of transformers' cache that grows inside the story's own buffers."""

    def __init__(self, buffers: tuple[Tensor, Tensor], length: int) -> None:
        super().__init__()
        self._buffers = buffers
        self._show(length)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        past, total = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, past:total] = new
        self._show(total)
        return self.keys, self.values

    def _show(self, length: int) -> None:
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)


class TorchLanguageSession(TorchSession):
    """The language model, which reads behind what a cache holds."""

    def new_cache(self, capacity: int) -> TorchCacheStorage:
        past = [spec for spec in self._signature.inputs if spec.name.startswith("past_key_values.")]
        _, heads, _, head_dim = past[0].axes
        shape = (1, int(heads), capacity, int(head_dim))
        buffers = [self._weight.new_zeros(shape) for _ in past]
        return TorchCacheStorage(list(zip(buffers[::2], buffers[1::2], strict=True)), capacity)

    def read(
        self, inputs_embeds: NDArray[np.float32], storage: CacheStorage, past_length: int
    ) -> NDArray[np.float32]:
        if not isinstance(storage, TorchCacheStorage):
            raise TypeError("the cache was made by another kind of session")
        cache = Cache(layers=[_BoundLayer(layer, past_length) for layer in storage.layers])
        embeds = self._tensor(inputs_embeds)
        with _computing(self._component, self._weight.device):
            output = self._open().backbone(inputs_embeds=embeds, cache=cache, use_cache=True)
            return _numpy(output.last_hidden_state.float())


def _cuda_problem() -> str:
    """Why CUDA cannot be used here, empty when it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without it"
    return "" if torch.cuda.is_available() else "there is no NVIDIA GPU, or no driver for it"


def _check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Raise `BackendError` for a type that a device does not compute in."""
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        raise BackendError(
            f"`{torch.cuda.get_device_name()}` does not compute in bf16", hint="draw with `--precision fp16`"
        )


def _numpy(tensor: Tensor) -> NDArray[Any]:
    """The tensor on the host; bf16, which numpy does not have, as float32."""
    host = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = host.cpu().numpy()
    return array


@contextmanager
def _computing(component: str, device: torch.device) -> Iterator[None]:
    """Without gradients and, on CUDA, with kernels that do not change from run to run."""
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with _reported(component), torch.inference_mode(), exact:
        yield


@contextmanager
def _reported(component: str) -> Iterator[None]:
    """What the library raises while a component is loaded or runs, as one clear error."""
    with reported(component, "draw with `--precision fp32`"):
        try:
            yield
        except torch.OutOfMemoryError as fault:
            raise BackendError(
                f"`{component}` does not fit the GPU's memory",
                hint="draw with `--precision nf4`, or `--device cpu`",
            ) from fault
