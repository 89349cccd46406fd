"""The external data of one graph, written tensor by tensor: what is quantized is no longer in memory.

Knows offsets, hashes and how far the weights it hears of are from what they were (of a layer some output
channels, see `quantize.HEARD`; what stays in 32 bits is what it was); not which layer gets which method.
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from storyv_lite.export.capture import EXTERNAL_FROM
from storyv_lite.export.verify import NO_NUMBER, Failure, compare
from storyv_lite.export.weight_parity import LIMITS
from storyv_lite.export.weights import Weights

Array = NDArray[Any]
ALIGNMENT = 4096  # bytes: tensors begin on pages, so that a mapped one shares none


class DataFile:
    """A vault (see `quantize.Vault`) that reads weights by reference and appends what it is given to a file.

    As a context it makes the file, and brings it to the disk at the end. With `half`, weights that are kept
    as they are become float16, for a graph that is computed so.
    """

    def __init__(self, path: Path, weights: Weights, component: str, half: bool = False) -> None:
        self.path, self.weights, self.component, self.half = path, weights, component, half
        self.failures: list[Failure] = []
        self.errors: dict[int, float] = {}  # smallest signal-to-noise ratio by bits, in decibels
        self._digest, self._end = hashlib.sha256(), 0

    def __enter__(self) -> "DataFile":
        self._stream = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stream:
            if kind is None:
                self._stream.flush()
                os.fsync(self._stream.fileno())

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._end

    def read(self, tensor: onnx.TensorProto) -> Array:
        if tensor.name in self.weights:
            return self.weights[tensor.name].read()
        value: Array = numpy_helper.to_array(tensor)
        return value

    def keep(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        if tensor.name not in self.weights:
            return tensor
        value = self.read(tensor)
        if not self.half:
            return self.store(tensor.name, value)
        with np.errstate(over="ignore"):  # an infinity is told with the tensor's name
            rounded = value.astype(np.float16)
        self.hear(tensor.name, 16, rounded, value)
        return self.store(tensor.name, rounded)

    def store(self, name: str, value: Array) -> onnx.TensorProto:
        if value.nbytes < EXTERNAL_FROM:
            return numpy_helper.from_array(np.ascontiguousarray(value), name)
        content = np.ascontiguousarray(value)
        self._write(bytes(-self._end % ALIGNMENT))
        tensor = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(content.dtype),
            dims=content.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": self._end, "length": content.nbytes}
        for key, fact in place.items():
            tensor.external_data.add(key=key, value=str(fact))
        self._write(content.reshape(-1).view(np.uint8).data)
        return tensor

    def hear(self, layer: str, bits: int, packed: Array, right: Array) -> None:
        if not (np.isfinite(packed).all() and np.isfinite(right).all()):
            self.failures.append(Failure(self.component, f"{NO_NUMBER} `{layer}`", 0.0, 0.0))
        elif not np.array_equal(packed, right):  # a layer of zeros has no ratio
            ratio = compare(packed, right).snr_db
            self.errors[bits] = min(self.errors.get(bits, ratio), ratio)
            if ratio < LIMITS[bits]:
                self.failures.append(
                    Failure(self.component, f"weight_snr_db at `{layer}`", ratio, LIMITS[bits])
                )

    def _write(self, content: bytes | memoryview) -> None:
        self._stream.write(content)
        self._digest.update(content)
        self._end += len(content)
