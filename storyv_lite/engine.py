"""What a TensorRT engine was built from and for: its key, what a builder cannot read, and why a key is stale.

Pure descriptions, shared by `export`, which builds engines, and `runtime`, which loads the right ones only.
An engine is a variant of a component (`backend` is the builder); the graph it was built from is the variant
for `onnx` of the same component in the same bundle.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.errors import BackendError
from storyv_lite.manifest import Part, Variant
from storyv_lite.quantization import Method, QuantScheme

# builder, which is also the backend of its variants, the name of its package and of the extra: its module
BUILDERS: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# free axis: smallest, most usual and largest size; guidance is a batch of two
PROFILES: Mapping[str, tuple[int, int, int]] = {"batch": (1, 2, 2)}
# TF32 is off, as for CUDA: a float32 graph is meant to be computed in float32
OPTIONS: Mapping[str, int | bool] = {"builder_optimization_level": 3, "strongly_typed": True, "tf32": False}
_NUMBER = re.compile(r"\d+\.\d+")
PORTABLE = "8.0+"  # what tensorrt-rtx builds for: every GPU from this compute capability on

# Measured with tensorrt-rtx 1.7: what its parser says of the ways in which layers are stored.
_UNREADABLE: Mapping[Method, str] = {
    Method.BLOCK4: "its 4-bit products are MatMulNBits, for which TensorRT has no layer",
    Method.BLOCK8: "its 8-bit products are MatMulNBits, for which TensorRT has no layer",
    Method.STATIC: "its 8-bit activations have a zero point, and TensorRT takes symmetric ones only",
}


@dataclass(frozen=True)
class EngineKey:
    """Everything that makes an engine the right one; equal keys mean that a file can be used again."""

    graph: str  # SHA-256 over the source graph and its data
    builder: str  # of `BUILDERS`
    version: str  # of the builder; the same library runs the engine
    profiles: Mapping[str, tuple[int, int, int]]
    options: Mapping[str, int | bool]
    gpu: str  # compute capability, such as "8.9", or `PORTABLE`

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The manifest's record of the key."""
        return {**asdict(self), "key": self.digest}


def make_key(
    source: Variant,
    builder: str,
    version: str,
    gpu: str,
    profiles: Mapping[str, tuple[int, int, int]] = PROFILES,
) -> EngineKey:
    """The key of the engine that this builder would make here of this graph."""
    return EngineKey(graph_digest(source.parts), builder, version, dict(profiles), dict(OPTIONS), gpu)


def graph_digest(parts: tuple[Part, ...]) -> str:
    """One SHA-256 over the hashes of graphs and data, which is the same wherever the files lie."""
    hashes = [text for part in parts for text in (part.sha256, part.data_sha256 or "")]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def covers(target: str, capability: str) -> bool:
    """Whether an engine for `target` runs on a GPU of this compute capability."""
    if target.endswith("+") and all(_NUMBER.fullmatch(text) for text in (target[:-1], capability)):
        return _numbers(capability) >= _numbers(target[:-1])
    return target == capability


def stale(record: Mapping[str, Any], needed: EngineKey) -> str:
    """In words, how the key in a manifest differs from the one that is needed; empty when it is the same.

    The GPU is compared by `covers`: an engine may be built for more than the one that is here.
    """
    wanted = json.loads(json.dumps(asdict(needed)))
    for name, here in wanted.items():
        found = record.get(name)
        if found != here and not (name == "gpu" and isinstance(found, str) and covers(found, here)):
            return f"it was built for the {name} {_short(found)}, and here it is {_short(here)}"
    stored = {name: record.get(name) for name in wanted}
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()
    return "" if record.get("key") == digest else "its key is not that of what it says it was built for"


def engine_variant(bundle: Bundle, component: Component, builder: str) -> Variant | None:
    """The engine of a component that `builder` made, whatever its key; None when there is none."""
    variants = bundle.components.get(component, ())
    return next((variant for variant in variants if variant.backend == builder), None)


def unreadable(scheme: QuantScheme) -> str:
    """Why no builder reads a graph of this scheme, empty when one does."""
    methods = (scheme.default, *(rule.method for rule in scheme.rules))
    if scheme.symmetric:
        return ""
    return next((_UNREADABLE[method] for method in methods if method in _UNREADABLE), "")


def refuse(component: Component, scheme: str, reason: str) -> BackendError:
    """The error for a graph that cannot become an engine."""
    return BackendError(
        f"`{component}` as `{scheme}` cannot become a TensorRT engine: {reason}",
        hint="`storyv-lite export CHECKPOINT --target tensorrt` stores it as half, which becomes one",
    )


def rebuild_command(bundle: Bundle, builder: str) -> str:
    return f"storyv-lite export {shlex.quote(str(bundle.path))} --target {builder} --force"


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(int(number) for number in capability.split("."))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text[:12] if len(text) == 64 else text}`"
