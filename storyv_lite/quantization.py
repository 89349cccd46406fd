"""What quantizing a bundle means: pure descriptions, read by `export` and shown by `inspect`.

Knows the ways a layer can be stored and which layer of which component gets which; not how weights are
packed. Rules name layers by their module path (`*/conv_in/*`), the first that matches wins.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from storyv_lite.components import ALIASES, Component
from storyv_lite.errors import ConfigError

# Weights that meet unsigned 8-bit activations keep to 7 bits: a processor without VNNI adds two products in
# 16 saturating bits, and 2 * 255 * 64 = 32,640 still fits.
REDUCED_RANGE = (-64, 63)
BLOCK_SIZE = 32  # weights that share one scale in the block-wise methods


class Method(StrEnum):
    """How the weights of one convolution or linear layer are stored, and what it computes in."""

    WIDE = "wide"  # float32
    HALF = "half"  # 16-bit floats, widened once, when a session starts
    STATIC = "static"  # 8-bit weights per channel, 8-bit activations with calibrated ranges
    WEIGHT_ONLY = "weight_only"  # 8-bit weights per channel; products round activations too (decision 0024)
    BLOCK8 = "block8"  # 8-bit weights in blocks, of linear layers and of convolutions as products
    BLOCK4 = "block4"  # 4-bit weights in the same way


class Rounding(StrEnum):
    """How a weight in blocks finds its level."""

    NEAREST = "nearest"
    GPTQ = "gptq"  # products only: roundings make up for each other on what calibration fed the layer


@dataclass(frozen=True)
class Storage:
    """What a method leaves of a weight. All scales are around zero: no method has zero points for weights."""

    bits: int
    group_size: int = 0  # weights that share a scale; 0: one per output channel, or none
    symmetric: bool = False
    scale_bits: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


STORAGE: Mapping[Method, Storage] = {
    Method.WIDE: Storage(32),
    Method.HALF: Storage(16),
    Method.STATIC: Storage(8, symmetric=True, scale_bits=32),
    Method.WEIGHT_ONLY: Storage(8, symmetric=True, scale_bits=32),
    Method.BLOCK8: Storage(8, BLOCK_SIZE, symmetric=True, scale_bits=16),
    Method.BLOCK4: Storage(4, BLOCK_SIZE, symmetric=True, scale_bits=16),
}


class Rule(NamedTuple):
    """Layers that a scheme stores in another way, and why."""

    pattern: str
    method: Method
    reason: str = "by a rule of its scheme"


@dataclass(frozen=True)
class QuantScheme:
    """How one component is quantized: `default` for every layer that no rule names."""

    name: str
    default: Method
    rules: tuple[Rule, ...] = ()
    accuracy_level: int = 0  # of block methods: 0 computes in float32, 4 rounds activations to 8 bits
    rounding: Rounding = Rounding.NEAREST  # of block methods
    symmetric: bool = False  # of static layers: activations without a zero point, which GPUs do not know
    half: bool = False  # what is not quantized is float16 inside and computed so; borders stay float32

    def choose(self, layer: str) -> tuple[Method, str]:
        """The method of the layer with this module path, and why it is not the default ("" where it is)."""
        rule = next((rule for rule in self.rules if fnmatchcase(layer, rule.pattern)), None)
        return (self.default, "") if rule is None else (rule.method, rule.reason)

    def method(self, layer: str) -> Method:
        """The method of the layer with this module path."""
        return self.choose(layer)[0]


FP32 = QuantScheme("fp32", Method.WIDE)
FP16 = QuantScheme("fp16", Method.HALF)
_HALF = QuantScheme("half", Method.WIDE, half=True)
_INT8_WEIGHTS = QuantScheme("int8-weights", Method.WEIGHT_ONLY)
# GPTQ keeps the [IMG] states closer than rounding to the nearest level: docs/decisions/0017.
_INT4_BLOCKS = QuantScheme("int4-block32", Method.BLOCK4, accuracy_level=4, rounding=Rounding.GPTQ)

# Of the UNet. The first and last layers see the latents themselves, the time layers a handful of numbers that
# steer every block: rounding their activations shows in the picture and saves nothing.
_STEERING = (
    Rule("*/conv_in/*", Method.WEIGHT_ONLY, "reads the latents themselves"),
    Rule("*/conv_out/*", Method.WEIGHT_ONLY, "writes the latents themselves"),
    Rule("*time_emb*", Method.WEIGHT_ONLY, "steers every block by the time"),
)
_FIRST = Rule("*/decoder.0/*", Method.WEIGHT_ONLY, "reads the latents themselves")

DRAWING = (Component.UNET, Component.VAE_DECODER)  # what draws; everything else reads

_INT8: Mapping[Component, QuantScheme] = {
    Component.TEXT_ENCODER: _INT8_WEIGHTS,
    Component.CHARACTER_ENCODER: _INT8_WEIGHTS,
    Component.FUSION: _INT8_WEIGHTS,
    Component.VISION_ENCODER: _INT8_WEIGHTS,
    # Scales per channel are smaller than 8-bit blocks of 32, and at this size twice as fast (measured).
    Component.LANGUAGE_MODEL: _INT8_WEIGHTS,
    Component.MAPPER: _INT8_WEIGHTS,
    Component.UNET: QuantScheme("int8", Method.STATIC, _STEERING),
    Component.VAE_DECODER: QuantScheme("int8", Method.STATIC, (_FIRST,)),
}

_INT4: Mapping[Component, QuantScheme] = {
    **dict.fromkeys(_INT8, _INT4_BLOCKS),
    Component.UNET: replace(_INT4_BLOCKS, rules=_STEERING),
}

# For GPUs, which multiply whole signed bytes: nothing saturates there, and zero points are not known.
_INT8_SYMMETRIC = QuantScheme(
    "int8-symmetric",
    Method.STATIC,
    tuple(rule._replace(method=Method.WIDE) for rule in (*_STEERING, _FIRST)),
    symmetric=True,
    half=True,
)

# What one component can be stored as, by the name that `--scheme COMPONENT=NAME` takes.
SCHEMES: Mapping[str, Mapping[Component, QuantScheme]] = {
    "fp32": dict.fromkeys(_INT8, FP32),
    "fp16": dict.fromkeys(_INT8, FP16),
    "int8": _INT8,
    "int4": _INT4,
    # of what draws alone: what reads is small, and its keys and values are float32
    "half": dict.fromkeys(DRAWING, _HALF),
    "int8-symmetric": dict.fromkeys(DRAWING, _INT8_SYMMETRIC),
}

# `--int4`: what reads is in 4 bits, the transformers of linear layers alone. What draws stays in 8.
_READERS = ("text_encoder", "character_encoder", "vision_encoder", "language_model", "mapper")
PRESETS: Mapping[str, str] = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "int8",
    "int4": ",".join(["int8", *(f"{component}=int4" for component in _READERS)]),
}


_SPELLING = "write it like `--scheme unet=int4,llm=int8`"


def plan(schemes: str) -> Mapping[Component, QuantScheme]:
    """The scheme of every graph of a bundle.

    `schemes` is a preset (`int4`), or single components (`unet=int4,llm=int8`) with the rest in 8 bits, or
    both (`int4,vae=fp32`); the last word on a component counts. Raises `ConfigError` for what is not known.
    """
    chosen: dict[Component, QuantScheme] = dict(_INT8)
    for item in filter(None, (part.strip() for part in _spelled_out(schemes).split(","))):
        component, _, name = item.rpartition("=")
        if name not in SCHEMES:
            raise ConfigError(
                f"`{name}` is no quantization scheme; there are {', '.join(SCHEMES)}", _SPELLING
            )
        if not component:
            chosen |= SCHEMES[name]
            continue
        known = ALIASES.get(component, component)
        if known not in list(_INT8):
            words = ", ".join([*ALIASES, *_INT8])
            raise ConfigError(
                f"`{component}` is no component that is quantized; there are {words}", _SPELLING
            )
        if known not in SCHEMES[name]:
            raise ConfigError(
                f"`{name}` is for {', '.join(SCHEMES[name])}; `{known}` cannot be stored so", _SPELLING
            )
        chosen[Component(known)] = SCHEMES[name][Component(known)]
    return chosen


def _spelled_out(schemes: str) -> str:
    """With its first item, where that is a preset, replaced by what the preset means."""
    first, comma, rest = schemes.partition(",")
    return PRESETS.get(first.strip(), first) + comma + rest
