"""The CUDA driver, as far as it is needed: is there a GPU, which one, and memory and a stream on it.

Called through ctypes, so that it needs no package: the driver comes with the GPU. Knows nothing of graphs.
All copies and all work go into one stream, in order; `synchronize` waits for it.
"""

import ctypes
import ctypes.util
import functools
import sys
from typing import Any

from numpy.typing import NDArray

from storyv_lite.errors import BackendError

_MAJOR, _MINOR = 75, 76  # attributes of a device: its compute capability


@functools.cache
def problem() -> str:
    """Why there is no CUDA device, empty when there is one."""
    try:
        driver = _library()
    except OSError:
        return "there is no NVIDIA driver"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "there is no NVIDIA GPU"
    return ""


def compute_capability() -> str:
    """Of the first GPU, such as `8.9`. Raises `BackendError`."""
    if reason := problem():
        raise BackendError(f"a CUDA device is needed: {reason}")
    driver, numbers = _library(), []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        status = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, _first(driver))
        _check(status, "cuDeviceGetAttribute")
        numbers.append(str(value.value))
    return ".".join(numbers)


class Device:
    """The first GPU, in the context that every library of this process shares, and one stream on it."""

    def __init__(self) -> None:
        """Raises `BackendError` where there is no GPU."""
        if reason := problem():
            raise BackendError(f"a CUDA device is needed: {reason}")
        self._driver = _library()
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), _first(self._driver))
        self.use()
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = int(stream.value or 0)

    def use(self) -> None:
        """Make this device the one that the calling thread works on."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes, 256-byte aligned. Raises `BackendError` when memory runs out."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return int(address.value)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def copy_in(self, address: int, array: NDArray[Any]) -> None:
        """Queue a copy of a contiguous array to the device; the array must live until `synchronize`."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, size, self._stream())

    def copy_out(self, array: NDArray[Any], address: int) -> None:
        """Queue a copy from the device into a contiguous array, filled after `synchronize`."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), size, self._stream())

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream())

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        _check(getattr(self._driver, name)(*arguments), name)


class Buffer:
    """Device memory that grows to the largest size asked for; what it held before is then lost."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.address, self.nbytes = 0, 0

    def reserve(self, size: int) -> int:
        """The address of at least `size` bytes. Nothing queued may still use the old ones."""
        if size > self.nbytes or not self.address:
            self.release()
            self.address, self.nbytes = self._device.allocate(size), size
        return self.address

    def release(self) -> None:
        if self.address:
            self._device.free(self.address)
        self.address, self.nbytes = 0, 0


def _library() -> Any:
    name = "nvcuda" if sys.platform == "win32" else "cuda"
    return ctypes.CDLL(ctypes.util.find_library(name) or "libcuda.so.1")


def _first(driver: Any) -> ctypes.c_int:
    device = ctypes.c_int()
    _check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    return device


def _check(status: int, name: str) -> None:
    if status == 2:
        raise BackendError("the GPU's memory ran out", hint="draw with `--device cpu`")
    if status != 0:
        raise BackendError(f"the GPU refused `{name}` with error {status}", hint="storyv-lite doctor")
