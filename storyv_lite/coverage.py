"""What a bundle's weights are stored as: groups of tensors, shares of each width, why a layer stayed wide.

Knows the records that quantizing leaves (`Stored`) and how they are summed up in the manifest; pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from storyv_lite.quantization import STORAGE, Method, QuantScheme, Rounding

REST = "norms, biases, constants"  # everything that is no weight of a layer


@dataclass(frozen=True)
class Stored:
    """How the weight of one layer was stored."""

    layer: str  # module path
    method: Method
    parameters: int
    bytes: int  # with scales
    reason: str = ""  # why it is wider than its scheme's default; empty where it is not
    rounding: Rounding = Rounding.NEAREST


@dataclass(frozen=True)
class Share:
    """The part of all weights that has one width."""

    bits: int
    parameters: int
    bytes: int
    percent_of_parameters: float
    percent_of_bytes: float


def coverage_of(stored: Iterable[Stored], scheme: QuantScheme) -> dict[str, Any]:
    """The manifest's entry: one group for each way of storing, and one entry for each layer left wide."""
    entries, default = list(stored), scheme.default
    if scheme.half:  # applied to a whole graph, after its layers
        entries, default = list(map(_halved, entries)), Method.HALF if default is Method.WIDE else default
    groups = []
    for key in dict.fromkeys((entry.method, entry.rounding) for entry in entries):
        same = [entry for entry in entries if (entry.method, entry.rounding) == key]
        groups.append(
            {
                "method": str(key[0]),
                **STORAGE[key[0]].as_dict(),
                "rounding": str(key[1]),
                "parameters": sum(entry.parameters for entry in same),
                "bytes": sum(entry.bytes for entry in same),
                "layers": [entry.layer for entry in same],
            }
        )
    wide = [
        {"layer": e.layer, "bits": STORAGE[e.method].bits, "parameters": e.parameters, "reason": e.reason}
        for e in entries
        if e.reason
    ]
    return {"default": str(default), "groups": groups, "wide": wide}


def _halved(entry: Stored) -> Stored:
    if entry.method is not Method.WIDE:
        return entry
    return replace(entry, method=Method.HALF, bytes=entry.bytes // 2)


def shares(weights: Iterable[Mapping[str, Any]]) -> list[Share]:
    """How much of the weights of several components has which width, narrow ones first."""
    sums: dict[int, tuple[int, int]] = {}
    for group in (group for component in weights for group in component.get("groups", ())):
        parameters, size = sums.get(group["bits"], (0, 0))
        sums[group["bits"]] = (parameters + group["parameters"], size + group["bytes"])
    all_parameters = sum(parameters for parameters, _ in sums.values()) or 1
    all_bytes = sum(size for _, size in sums.values()) or 1
    return [
        Share(bits, parameters, size, 100 * parameters / all_parameters, 100 * size / all_bytes)
        for bits, (parameters, size) in sorted(sums.items())
    ]


def summary(weights: Iterable[Mapping[str, Any]]) -> str:
    """One line: the share of every width."""
    return "; ".join(
        f"{share.bits} bits: {share.percent_of_parameters:.1f} % of parameters, "
        f"{share.percent_of_bytes:.1f} % of bytes"
        for share in shares(weights)
    )


def lines(weights: Mapping[str, Any]) -> list[str]:
    """The whole report of one component: a line for each group and for each layer left wide."""
    told = []
    for group in weights.get("groups", ()):
        size = f", blocks of {group['group_size']}" if group["group_size"] else ""
        kind = "symmetric" if group["symmetric"] else "float"
        told.append(
            f"{group['bits']} bits ({group['method']}{size}, {kind}, rounding {group['rounding']}): "
            f"{len(group['layers'])} tensors, {group['parameters']} parameters, {group['bytes']} bytes"
        )
    told += [
        f"{entry['bits']} bits: {entry['layer']} ({entry['parameters']} parameters): {entry['reason']}"
        for entry in weights.get("wide", ())
    ]
    return told
