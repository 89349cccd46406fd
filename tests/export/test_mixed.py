"""Widths for a target: what was asked for is kept, or refused."""

from pathlib import Path

import pytest

from storyv_lite.components import Component
from storyv_lite.errors import ConfigError
from storyv_lite.export import mixed
from storyv_lite.export.capture import load_graph
from storyv_lite.export.layers import methods_of_layers
from storyv_lite.quantization import Method
from storyv_lite.widths import Layer, Option


@pytest.mark.parametrize(
    ("scheme", "part"),
    [("unet=fp16", "unet"), ("fusion=int4, llm=int8", "language_model"), ("half", "vae_decoder")],
)
def test_a_part_that_a_target_chooses_widths_for_gets_no_scheme_beside_it(scheme: str, part: str) -> None:
    with pytest.raises(ConfigError, match=f"`{part}`") as refusal:
        mixed.refuse_both(scheme)
    assert "leave" in refusal.value.hint


@pytest.mark.parametrize("scheme", ["", "fusion=int4,text_encoder=fp16"])
def test_other_parts_may_have_a_scheme_beside_a_target(scheme: str) -> None:
    mixed.refuse_both(scheme)


@pytest.fixture(scope="module")
def layers(tiny_bundle: Path) -> list[Layer]:
    """The UNet's layers that can be narrow, said to take a kilobyte each in 4 bits and two in 16."""
    found = methods_of_layers(load_graph(tiny_bundle / Component.UNET), Method.BLOCK4)
    options = (Option(4, 1000, 1.0), Option(16, 2000, 0.0))
    return [Layer(Component.UNET, name, options) for name, _, method in found if method is Method.BLOCK4]


def weigh(wide: Path, layers: list[Layer], chosen: list[Option]) -> int:
    return sum(mixed.graph_bytes(wide / c, s) for c, s in mixed.as_schemes(layers, chosen).items())


def test_what_is_chosen_never_weighs_more_than_the_target(tiny_bundle: Path, layers: list[Layer]) -> None:
    smallest, largest = (
        weigh(tiny_bundle, layers, [layer.options[at] for layer in layers]) for at in (0, -1)
    )
    for target in (smallest, (smallest + largest) // 2, largest - 1):
        chosen = mixed.fit(tiny_bundle, layers, target, 0)
        assert weigh(tiny_bundle, layers, chosen) <= target, f"{smallest} to {largest}"
    with pytest.raises(ConfigError, match="the smallest bundle has about"):
        mixed.fit(tiny_bundle, layers, smallest - 1, 0)
