"""What parts of a story take in memory: components loaded and at work, keys and values, sheet and page.

Pure: from the sizes in a bundle's manifest and from shapes. The constants are measured on the default model
in every scheme (`python -m storyv_lite.benchmarks.footprint`) and rounded up to hold for all its components.
Weights scale with bytes; what a convolution works in scales with pixels and with the root of the weights, as
widths do. That holds for decoders that end by unfolding pixels, as ours does; for others, and wherever the
manifest says what a component works in, that is taken. Of a component in several parts one is there at a time
(`backends.parts`) unless it is wanted as a whole, so it takes what its largest part takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from storyv_lite.components import Component, Dimensions
from storyv_lite.manifest import Variant
from storyv_lite.runtime.context_size import bytes_per_token
from storyv_lite.runtime.tiles import tile_starts

MIB = 2**20
WIDE = "fp32"  # what graphs compute keys and values in

# What the process takes on top of what it holds when the library is imported: its code, once it runs.
LIBRARY_BYTES = 18 * MIB
# Of the largest component that came and went, what stays behind in pages that others share with it.
LEFT_BEHIND = 0.08
_FINISH_BYTES = 8 * MIB  # fonts, and the library that sets them
_FINISH_COPIES = 5  # of every picture, raw: on the sheet, in the page

# The system maps what lies around a page that is read, when it is in memory anyway.
_FAULT_AROUND = 2**16
LARGE = 16 * MIB  # beyond it a component of the default model does not go
# Of what a manifest tells. From its second run on a session lays all tensors into one block, in which about a
# fifth is lost; without the block, pages would be taken and given back for every tensor, which costs time.
_OF_TOLD = 1.25

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
    large: float = 0.0  # of both, for what is beyond LARGE; 0 where that was not measured: as below it


_SCHEMES = {
    "fp32": _Scheme(1.12, 1.2, 1.5, 32, 0.56, 0.012),
    "fp16": _Scheme(2.35, 3.9, 2.0, 16, 0.56, 0.012),
    "int8": _Scheme(1.75, 1.75, 1.0, 8, 0.56, 0.019),
    "int8-weights": _Scheme(2.0, 2.0, 2.2, 8, 0.56, 0.012),
    "int4-block32": _Scheme(2.5, 2.5, 2.4, 4.5, 1.55, 0.075, large=1.6),
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
    steps: int = 1  # of denoising, for one picture
    written: int = 0  # tokens that the language model writes for one frame, each in a call of its own


@dataclass(frozen=True)
class Footprint:
    """Bytes of one component: kept by its session, most while it is made, and on top while it works."""

    loaded: int
    loading: int
    working: int
    load_seconds: float  # per frame, where it is not kept
    in_turn: bool = False  # one part at a time, each loaded in every call


def footprint(
    component: Component,
    variant: Variant,
    dims: Dimensions,
    demand: Demand,
    batched: bool = True,
    tile: int = 0,
    kv_width: str = WIDE,
    whole: bool = False,
) -> Footprint:
    """What one component takes for one story; all parts of a `whole` are there at once."""
    size = sum(part.bytes for part in variant.parts)
    schemes = _SCHEMES | _LINEAR if component in _READS_TEXT else _SCHEMES
    scheme = schemes.get(variant.scheme, _UNKNOWN)
    if component is Component.TOKEN_EMBEDDING:
        row = 2 * dims.hidden_size + 2 * _FAULT_AROUND  # mapped; in the worst case every row is another
        read = size if demand.written else min(size, demand.frames * demand.longest_read * row)
        return Footprint(read, read, 0, 0.0)
    network = _told(component, variant.work or {}, dims, demand, batched, tile)
    if network is None:
        width = (size * 8 / scheme.weight_bits) ** 0.5
        network = _network(component, scheme, width, dims, demand, batched, tile)
    sizes = [part.bytes for part in variant.parts]
    in_turn, largest = len(sizes) > 1 and not whole, max(sizes, default=0)
    loaded = sum(_weights(scheme, scheme.loaded, one) for one in ([largest] if in_turn else sizes))
    most = _weights(scheme, scheme.loading, largest) - _weights(scheme, scheme.loaded, largest)
    seconds = _LOAD_SECONDS * len(sizes) + _LOAD_SECONDS_PER_MIB * size / MIB
    return Footprint(
        loaded=int(loaded),
        loading=int(loaded + most),
        working=int(_beside(component, network, dims, demand, tile, kv_width)),
        load_seconds=seconds * (_calls(component, dims, demand, batched, tile) if in_turn else 1),
        in_turn=in_turn,
    )


def _weights(scheme: _Scheme, factor: float, size: int) -> float:
    """Bytes in memory of one graph of `size` bytes on the disk."""
    few = min(size, LARGE)
    return factor * few + (scheme.large or factor) * (size - few) + scheme.graph * MIB


def finish_bytes(dims: Dimensions, frames: int) -> int:
    """What the sheet and the page take, when the last frame is drawn."""
    return _FINISH_BYTES + _FINISH_COPIES * frames * 3 * dims.image_size**2


def _calls(component: Component, dims: Dimensions, demand: Demand, batched: bool, tile: int) -> int:
    """How often a component runs for one frame."""
    if component is Component.UNET:
        return demand.steps * (2 if demand.guided and not batched else 1)
    if component is Component.VAE_DECODER and tile:
        return len(tile_starts(dims.latent_size, tile)) ** 2
    if component is Component.LANGUAGE_MODEL:
        return max(1, demand.written)  # the first token comes with the reading
    return 1


def _told(
    component: Component, work: Mapping[str, int], dims: Dimensions, demand: Demand, batched: bool, tile: int
) -> float | None:
    """What the manifest says that tensors between nodes take; None where it does not."""
    sizes = sorted((int(size), told) for size, told in work.items())
    if not sizes:
        return None
    wanted = 1
    if component is Component.UNET and demand.guided and batched:
        wanted = 2
    elif component in (Component.CHARACTER_ENCODER, Component.FUSION):
        wanted = demand.characters
    elif component is Component.VAE_DECODER:
        wanted = min(tile, dims.latent_size) if tile else dims.latent_size
    size, most = next((one for one in sizes if one[0] >= wanted), sizes[-1])
    return _OF_TOLD * most * max(1.0, wanted / size)


def _network(
    component: Component,
    scheme: _Scheme,
    width: float,
    dims: Dimensions,
    demand: Demand,
    batched: bool,
    tile: int,
) -> float:
    """The same as far as it follows from shapes and the size of the weights."""
    match component:
        case Component.UNET:
            batch = 2 if demand.guided and batched else 1
            return 4 * scheme.unet * batch * dims.latent_size**2 * width
        case Component.VAE_DECODER:
            return 4 * scheme.decoder * (_part(dims, tile) * dims.image_size) ** 2 * width
        case Component.LANGUAGE_MODEL:
            states = 28 * dims.hidden_size + dims.num_key_value_heads * demand.tokens
            return MIB / 2 + 4 * demand.longest_read * states
        case Component.VISION_ENCODER | Component.CHARACTER_ENCODER:
            pictures = 1 if component is Component.VISION_ENCODER else demand.characters
            return MIB + 16 * pictures * 3 * dims.vision_image_size**2
        case _:
            return MIB + 64 * dims.text_tokens * dims.cross_attention_dim


def _beside(
    component: Component, network: float, dims: Dimensions, demand: Demand, tile: int, kv: str
) -> float:
    """What a network works in, and what lies beside it meanwhile."""
    if component is Component.LANGUAGE_MODEL and kv != WIDE:
        # narrow keys and values are widened for a read, and given back behind it
        return network + demand.tokens * bytes_per_token(dims, WIDE)
    if component is Component.VAE_DECODER:
        whole = 4 * 3 * dims.image_size**2
        # the picture that is put together, a tile on its way into it; in the end, floats become bytes
        return max(network + (1 + 2 * _part(dims, tile)) * whole, 4 * whole)
    return network


def _part(dims: Dimensions, tile: int) -> float:
    """Of a picture's side, that is decoded at once."""
    return min(tile, dims.latent_size) / dims.latent_size if tile else 1.0
