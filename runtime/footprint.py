"""What parts of a story take in memory: components loaded and at work, keys and values, sheet and page.

Pure: from the sizes in a bundle's manifest and from shapes. The constants are measured on the default model
in every scheme (`python -m storyv_lite.benchmarks.footprint`) and rounded up to hold for all its components.
Weights scale with bytes; what a convolution works in scales with pixels and with the root of the weights, as
widths do. That holds for decoders that end by unfolding pixels, as ours does, not for others. Of a component
in several parts one is there at a time (`backends.parts`), so it takes what its largest part takes.
"""

from dataclasses import dataclass

from storyv_lite.components import Component, Dimensions
from storyv_lite.manifest import Variant
from storyv_lite.runtime.context_size import bytes_per_token

MIB = 2**20
WIDE = "fp32"  # what graphs compute keys and values in

# What the process takes on top of what it holds when the library is imported: its code, once it runs.
LIBRARY_BYTES = 18 * MIB
# Of the largest component that came and went, what stays behind in pages that others share with it.
LEFT_BEHIND = 0.08
_FINISH_BYTES = 8 * MIB  # fonts, and the library that sets them
_FINISH_COPIES = 5  # of every picture, raw: on the sheet, in the page

_LOAD_SECONDS, _LOAD_SECONDS_PER_MIB = 0.02, 0.025


@dataclass(frozen=True)
class _Scheme:
    """Of one way to store weights; factors of the bytes on the disk."""

    loaded: float  # weights as they are computed with, often beside what is mapped
    loading: float  # while a session is made
    graph: float  # MiB of a session, whatever its weights
    weight_bits: float
    unet: float  # floats at work, of pixels times root of weights
    decoder: float


_SCHEMES = {
    "fp32": _Scheme(1.12, 1.2, 1.5, 32, 0.56, 0.012),
    "fp16": _Scheme(2.35, 3.9, 2.0, 16, 0.56, 0.012),
    "int8": _Scheme(1.75, 1.75, 1.0, 8, 0.56, 0.019),
    "int8-weights": _Scheme(2.0, 2.0, 2.2, 8, 0.56, 0.012),
    "int4-block32": _Scheme(2.5, 2.5, 2.4, 4.5, 1.55, 0.075),
}
# Four bits of what sees no pixels: linear layers alone, no convolution rewritten as a product.
_LINEAR = {"int4-block32": _Scheme(1.6, 1.6, 2.0, 4.5, 0.0, 0.0)}
_READS_TEXT = (Component.TEXT_ENCODER, Component.LANGUAGE_MODEL, Component.MAPPER, Component.FUSION)
# Schemes that are not listed (mixtures, those for GPUs) are taken as the worst in every respect.
_UNKNOWN = _Scheme(2.5, 3.9, 2.4, 4.5, 1.55, 0.075)


@dataclass(frozen=True)
class Demand:
    """What a story asks for, whatever it is drawn with."""

    frames: int
    tokens: int  # the longest context, query included
    longest_read: int  # tokens that the language model reads in one call
    characters: int  # portraits that one caption needs
    guided: bool  # two evaluations per step


@dataclass(frozen=True)
class Footprint:
    """Bytes of one component: kept by its session, most while it is made, and on top while it works."""

    loaded: int
    loading: int
    working: int
    load_seconds: float


def footprint(
    component: Component,
    variant: Variant,
    dims: Dimensions,
    demand: Demand,
    batched: bool = True,
    tile: int = 0,
    kv_width: str = WIDE,
) -> Footprint:
    """What one component takes for one story."""
    size = sum(part.bytes for part in variant.parts)
    schemes = _SCHEMES | _LINEAR if component in _READS_TEXT else _SCHEMES
    scheme = schemes.get(variant.scheme, _UNKNOWN)
    if component is Component.TOKEN_EMBEDDING:
        return Footprint(size, size, 0, 0.0)  # mapped; in the worst case every row is read
    width = (size * 8 / scheme.weight_bits) ** 0.5
    largest = max((part.bytes for part in variant.parts), default=0)
    return Footprint(
        loaded=int(scheme.loaded * largest + scheme.graph * MIB),
        loading=int(scheme.loading * largest + scheme.graph * MIB),
        working=int(_working(component, scheme, width, dims, demand, batched, tile, kv_width)),
        load_seconds=_LOAD_SECONDS + _LOAD_SECONDS_PER_MIB * size / MIB,
    )


def finish_bytes(dims: Dimensions, frames: int) -> int:
    """What the sheet and the page take, when the last frame is drawn."""
    return _FINISH_BYTES + _FINISH_COPIES * frames * 3 * dims.image_size**2


def _working(
    component: Component,
    scheme: _Scheme,
    width: float,
    dims: Dimensions,
    demand: Demand,
    batched: bool,
    tile: int,
    kv_width: str,
) -> float:
    match component:
        case Component.UNET:
            batch = 2 if demand.guided and batched else 1
            return 4 * scheme.unet * batch * dims.latent_size**2 * width
        case Component.VAE_DECODER:
            part = min(tile, dims.latent_size) / dims.latent_size if tile else 1.0
            whole = 4 * 3 * dims.image_size**2
            network = 4 * scheme.decoder * (part * dims.image_size) ** 2 * width
            # the picture that is put together, a tile on its way into it; in the end, floats become bytes
            return max(network + (1 + 2 * part) * whole, 4 * whole)
        case Component.LANGUAGE_MODEL:
            states = 28 * dims.hidden_size + dims.num_key_value_heads * demand.tokens
            # narrow keys and values are widened for a read, and given back behind it
            widened = 0 if kv_width == WIDE else demand.tokens * bytes_per_token(dims, WIDE)
            return MIB / 2 + 4 * demand.longest_read * states + widened
        case Component.VISION_ENCODER | Component.CHARACTER_ENCODER:
            pictures = 1 if component is Component.VISION_ENCODER else demand.characters
            return MIB + 16 * pictures * 3 * dims.vision_image_size**2
        case _:
            return MIB + 64 * dims.text_tokens * dims.cross_attention_dim
