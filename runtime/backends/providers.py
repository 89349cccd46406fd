"""ONNX Runtime's providers: what each is called, what it is given, and why it cannot be used here.

The driver is asked first, then the library, then the provider itself with the smallest graph there is, so
that nothing large is loaded before it is known where it will run.
"""

from collections.abc import Mapping
from typing import Any

import onnxruntime as ort

from storyv_lite.errors import BackendError
from storyv_lite.optional import installed
from storyv_lite.runtime.backends import driver

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
# Of each, the command that brings what it needs; the last one comes as a plugin of its own.
INSTALL: Mapping[str, str] = {
    "cuda": "pip install 'storyv-lite[cuda]'",
    "tensorrt": "pip install 'storyv-lite[cuda,tensorrt]'",
    "tensorrt-rtx": "pip install 'storyv-lite[cuda,tensorrt-rtx-provider]'",
}
# CUDA: no rounding to 19 bits, no search for the fastest convolution, which differs from run to run, and an
# arena that takes what is asked for and not the next power of two
_CUDA = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
# y = -x
_PROBE = bytes.fromhex(
    "08083a320a0b0a017812017922034e65671201705a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a"
    "02080142040a001011"
)


def make_session(graph: str | bytes, options: ort.SessionOptions, provider: str) -> ort.InferenceSession:
    """A session on one provider; nodes that a TensorRT provider cannot run go to CUDA.

    Raises what the library raises; it never tries again on the CPU by itself.
    """
    if provider == "tensorrt-rtx":
        devices = [device for device in ort.get_ep_devices() if device.ep_name == _register_plugin()]
        options.add_provider_for_devices(devices[:1], {})
        return ort.InferenceSession(graph, options, enable_fallback=0)
    providers: list[tuple[str, dict[str, Any]]] = [(PROVIDERS[provider], {})]
    if provider == "cuda":
        providers = [(PROVIDERS["cuda"], _CUDA)]
    elif provider == "tensorrt":
        providers.append((PROVIDERS["cuda"], _CUDA))
    return ort.InferenceSession(graph, options, providers=providers, enable_fallback=0)


def problem(provider: str) -> str:
    """Why a provider cannot be used here, empty when it can."""
    if provider == "cpu":
        return ""
    if reason := driver.problem():
        return reason
    if provider != "tensorrt-rtx" and PROVIDERS[provider] not in ort.get_available_providers():
        return f"this onnxruntime has no {PROVIDERS[provider].removesuffix('ExecutionProvider')} provider"
    if provider == "tensorrt-rtx" and not installed(_PLUGIN):
        return "its plugin is not installed"
    if provider == "tensorrt" and not installed("tensorrt"):
        return "`tensorrt` is not installed"
    try:
        ort.preload_dlls()
        if provider == "tensorrt":
            import tensorrt  # noqa: F401  # it loads the libraries that the provider links against
        options = ort.SessionOptions()
        options.log_severity_level = 4
        found = make_session(_PROBE, options, provider).get_providers()[0]
    except Exception as fault:  # the library has no common error class
        return f"it does not load: {(str(fault) or type(fault).__name__).splitlines()[0]}"
    return "" if found == PROVIDERS[provider] else "its libraries do not load"


def check(provider: str, asked: str = "") -> None:
    """Raise `BackendError` when a provider cannot be used here; `asked` is what needs it, if not itself."""
    if fault := problem(provider):
        name = asked or provider
        raise BackendError(
            f"`{name}` was asked for and does not work: {fault}",
            hint=f"draw with `--device cpu`, or {INSTALL[name]} where there is a GPU",
        )


def nodes_by_provider(session: ort.InferenceSession) -> dict[str, int]:
    """How many nodes each provider runs; known for sessions whose options asked for it to be recorded."""
    counts: dict[str, int] = {}
    for group in session.get_provider_graph_assignment_info():
        counts[group.ep_name] = counts.get(group.ep_name, 0) + len(group.get_nodes())
    return counts


RECORD_NODES = ("session.record_ep_graph_assignment_info", "1")


def _register_plugin() -> str:
    """Make the plugin's provider known to the library, once; its name."""
    import onnxruntime_ep_nv_tensorrt_rtx as plugin

    name = str(plugin.get_ep_name())
    if name not in {device.ep_name for device in ort.get_ep_devices()}:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    return name
