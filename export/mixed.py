"""Mixed widths: from a target, in bytes of the whole bundle or in decibels, to a scheme for each component.

Knows how bytes of a bundle add up and what is kept in its manifest; errors are measured by `sensitivity`, the
choice is made by `widths`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storyv_lite.components import ALIASES, Component
from storyv_lite.errors import ConfigError
from storyv_lite.export.calibrate import Calibration
from storyv_lite.export.capture import load_graph
from storyv_lite.export.quantize import quantize
from storyv_lite.export.sensitivity import MIXED, measure_layers, prices
from storyv_lite.export.simplify import shorten
from storyv_lite.memory import format_bytes
from storyv_lite.quantization import SCHEMES, Method, QuantScheme, Rounding, Rule
from storyv_lite.widths import Layer, Option, choose

LEAST, AIM, MOST = 0.982, 0.991, 0.999  # parts of the byte target
ATTEMPTS = 6
PRICED = 8  # stories that prices are measured on
_METHODS = {4: Method.BLOCK4, 8: Method.WEIGHT_ONLY, 16: Method.HALF}


@dataclass(frozen=True)
class Target:
    """What a mixed bundle must not exceed; one of the two is given."""

    bytes: int | None = None  # of the whole bundle
    psnr_db: float | None = None  # of pictures against full precision, as predicted from the layers


@dataclass(frozen=True)
class Mixture:
    """Schemes, and the record of how they came about."""

    schemes: Mapping[Component, QuantScheme]
    record: Mapping[str, Any]


def refuse_both(scheme: str) -> None:
    """Raise `ConfigError` when `scheme`, as `--scheme` takes it, names a part that a target chooses for."""
    for item in filter(None, (item.strip() for item in scheme.split(","))):
        component, _, name = item.rpartition("=")
        named = [ALIASES.get(component, component)] if component else list(SCHEMES[name])
        if both := [part for part in MIXED if part in named]:
            raise ConfigError(
                f"a target chooses the widths of `{both[-1]}`, and `--scheme` says `{item}`",
                hint=f"leave the target out, or `{item}`",
            )


def mix(
    wide: Path,
    calibration: Calibration,
    stories: Sequence[Mapping[str, Any]],
    schemes: Mapping[Component, QuantScheme],
    target: Target,
    other_bytes: int,
    progress: Callable[[str], None],
) -> Mixture:
    """Schemes in which the layers of `MIXED` have the widths that reach the target with the least error.

    `other_bytes` are those of everything in the bundle that is no graph. Raises `ConfigError` when the
    smallest bundle is larger than the target.
    """
    progress("measure what errors of each component do to pictures")
    price = prices(wide, stories[:PRICED])
    layers: list[Layer] = []
    for component in MIXED:
        progress(f"measure the layers of {component}")
        layers += measure_layers(
            component, load_graph(wide / component), calibration[component], price[component]
        )
    if target.bytes is None:
        chosen = choose(layers, max_error=10 ** (-(target.psnr_db or 0.0) / 10))
    else:
        progress("choose widths")
        fixed = other_bytes + sum(
            graph_bytes(wide / part, scheme) for part, scheme in schemes.items() if part not in MIXED
        )
        chosen = fit(wide, layers, target.bytes, fixed)
    found = [(layer, option) for layer, option in zip(layers, chosen, strict=True)]
    error = sum(option.error for option in chosen)
    predicted = {"predicted_mse": float(f"{error:.4g}")}
    rows = [
        {"component": layer.component, "layer": layer.name, "bits": option.bits, "bytes": option.bytes,
         "error": {str(o.bits): float(f"{o.error:.3g}") for o in layer.options}}
        for layer, option in found
    ]  # fmt: skip
    asked = {"target_bytes": target.bytes, "target_psnr_db": target.psnr_db}
    costs = {str(part): float(f"{value:.4g}") for part, value in price.items()}
    return Mixture(
        {**schemes, **as_schemes(layers, chosen)}, {**asked, **predicted, "prices": costs, "layers": rows}
    )


def as_schemes(layers: Sequence[Layer], chosen: Sequence[Option]) -> dict[Component, QuantScheme]:
    """4 bits by default, and a rule for each layer that got more."""
    schemes = {}
    for component in MIXED:
        rules = tuple(
            Rule(layer.name, _METHODS[option.bits], f"{option.bits} bits chosen by measured error")
            for layer, option in zip(layers, chosen, strict=True)
            if layer.component is component and option.bits != 4
        )
        schemes[component] = QuantScheme("mixed", Method.BLOCK4, rules, 4, Rounding.GPTQ)
    return schemes


def graph_bytes(folder: Path, scheme: QuantScheme) -> int:
    """Bytes of a component stored so; how weights are rounded makes no difference."""
    quantized = quantize(load_graph(folder), replace(scheme, rounding=Rounding.NEAREST))
    return int(shorten(quantized.model).ByteSize())


def fit(wide: Path, layers: Sequence[Layer], target: int, fixed: int) -> list[Option]:
    """The choice whose bundle lands just below `target`; what graphs weigh beside weights is tried out.

    `fixed` are the bytes of everything else. Raises `ConfigError` when the smallest bundle is larger.
    """

    def weigh(chosen: Sequence[Option]) -> int:
        return fixed + sum(graph_bytes(wide / c, s) for c, s in as_schemes(layers, chosen).items())

    best = choose(layers, 0)  # nothing fits, so all stay smallest
    if (most := weigh(best)) > target:
        raise ConfigError(
            f"the smallest bundle has about {format_bytes(most)}; {format_bytes(target)} were asked for",
            hint="give a larger `--target-bytes`",
        )
    room = AIM * target - fixed
    for _ in range(ATTEMPTS):
        chosen = choose(layers, room)
        total = weigh(chosen)
        if most < total <= MOST * target:
            best, most = chosen, total
        if LEAST * target <= most or (total < target and all(option.bits == 16 for option in chosen)):
            break  # close enough, or everything has all its bits and there is room left
        room += AIM * target - total
    return best
