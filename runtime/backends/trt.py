"""TensorRT: what draws runs as engines, what reads on ONNX Runtime's CUDA provider, numpy at the borders.

An engine is loaded only when its key in the manifest is the one that is needed here: its graph, this version
of the library, this GPU. All contexts share one scratch buffer, as large as the largest needs: components run
one after another. A component without an engine runs on ONNX Runtime's provider of the same name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.engine import BUILDERS, engine_variant, make_key, rebuild_command, stale
from storyv_lite.errors import BackendError, BundleError
from storyv_lite.optional import installed, require
from storyv_lite.quantization import DRAWING
from storyv_lite.runtime.backends import driver
from storyv_lite.runtime.backends.base import LanguageSession, Session, Tensors
from storyv_lite.runtime.backends.ort import OrtBackend


class TrtBackend:
    """Engines made by one builder for what draws, CUDA for the rest."""

    name = "trt"
    precision = "as exported"  # every component of a bundle says its own
    device = "cuda"

    def __init__(self, builder: str, threads: int | None = None) -> None:
        """`builder` is one of `engine.BUILDERS`. Raises `BackendError` where there is no GPU or no CUDA."""
        self.provider = builder
        self.reason = f"asked for: {builder} where it draws, CUDA where it reads"
        self._reading = OrtBackend("cuda", "asked for", threads, needed_by=builder)
        self.threads = self._reading.threads
        self._device: driver.Device | None = None
        self._scratch: driver.Buffer | None = None

    def open(self, bundle: Bundle, component: Component, whole: bool = False) -> Session:
        """Load one component. Raises `BundleError`, `BackendError` or `MissingDependency`."""
        if component not in DRAWING:
            return self._reading.open(bundle, component, whole)
        if engine_variant(bundle, component, self.provider) is None:
            return OrtBackend(self.provider, "asked for", self.threads).open(bundle, component, whole)
        content = read_engine(bundle, component, self.provider)
        if self._device is None or self._scratch is None:
            self._device = driver.Device()
            self._scratch = driver.Buffer(self._device)
        module = require(BUILDERS[self.provider], self.provider)
        return TrtSession(module, content, str(component), self._device, self._scratch)

    def open_language_model(self, bundle: Bundle, whole: bool = False) -> LanguageSession:
        """Load the language model on CUDA. Raises `BundleError` or `BackendError`."""
        return self._reading.open_language_model(bundle, whole)

    def versions(self) -> dict[str, str]:
        module = BUILDERS[self.provider]
        found = {self.provider: str(require(module, self.provider).__version__)} if installed(module) else {}
        return {**self._reading.versions(), **found}


def read_engine(bundle: Bundle, component: Component, builder: str, gpu: str = "") -> bytes:
    """The bytes of an engine that is right here; `gpu` is a compute capability, else this machine's is asked.

    Raises `BundleError` with the command that builds it anew for one that is not, `MissingDependency`.
    """
    module = require(BUILDERS[builder], builder)
    variant = engine_variant(bundle, component, builder)
    if variant is None:
        raise BundleError(f"`{bundle.path}` has no engine of `{component}`", rebuild_command(bundle, builder))
    here = gpu or driver.compute_capability()
    key = make_key(bundle.variant(component), builder, str(module.__version__), here)
    if reason := stale(variant.engine or {}, key):
        raise BundleError(
            f"the engine of `{component}` in `{bundle.path}` is not the one needed: {reason}",
            hint=f"build it anew with `{rebuild_command(bundle, builder)}`",
        )
    return bundle.file(variant.parts[0].file).read_bytes()


class TrtSession:
    """One engine; inputs and outputs lie in buffers of its own, what is between in the shared scratch."""

    def __init__(
        self, trt: Any, content: bytes, name: str, device: driver.Device, scratch: driver.Buffer
    ) -> None:
        """Raises `BackendError` when the engine cannot be loaded on this device."""
        self._name, self._device, self._scratch = name, device, scratch
        device.use()
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise BackendError(f"the engine of `{name}` cannot be loaded on this GPU", "storyv-lite doctor")
        self._context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        self._inputs = [name for name in names if name in inputs]
        self._outputs = [name for name in names if name not in inputs]
        self._dtypes = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._buffers = {name: driver.Buffer(device) for name in names}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        context, device = self._context, self._device
        if context is None:
            raise RuntimeError("the session is closed")
        device.use()
        # kept until `synchronize`: the copies below only queue
        given = {n: np.ascontiguousarray(inputs[n], dtype=self._dtypes[n]) for n in self._inputs}
        for name, array in given.items():
            if not context.set_input_shape(name, array.shape):
                raise BackendError(
                    f"the engine of `{self._name}` takes no `{name}` of the shape {array.shape}"
                )
            device.copy_in(self._buffers[name].reserve(array.nbytes), array)
        answer: Tensors = {}
        for name in self._outputs:  # their shapes follow from those of the inputs
            answer[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype=self._dtypes[name])
            self._buffers[name].reserve(answer[name].nbytes)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.address)
        needed = self._engine.device_memory_size_v2
        context.set_device_memory(self._scratch.reserve(needed), self._scratch.nbytes)
        if not context.execute_async_v3(device.stream):
            raise BackendError(f"the engine of `{self._name}` failed", hint="storyv-lite doctor")
        for name, array in answer.items():
            device.copy_out(array, self._buffers[name].address)
        device.synchronize()
        return answer

    def close(self) -> None:
        self._context = self._engine = self._runtime = None
        for buffer in self._buffers.values():
            buffer.release()
