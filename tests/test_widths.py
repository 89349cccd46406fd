"""The choice of widths: within its bytes, close to them, and better than one width for all."""

import itertools

import numpy as np
import pytest

from storyv_lite.components import Component
from storyv_lite.widths import Layer, Option, choose


def layers(count: int = 60, seed: int = 0) -> list[Layer]:
    """Layers whose size and sensitivity have nothing to do with each other."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        size, error = int(random.integers(1000, 9000)), float(10 ** random.uniform(-6, -2))
        options = ((4, size, error), (8, 2 * size, error / 200), (16, 4 * size, 0.0))
        found.append(Layer(Component.UNET, f"/layer.{index}", tuple(Option(*option) for option in options)))
    return found


def size(options: list[Option]) -> int:
    return sum(option.bytes for option in options)


def error(options: list[Option]) -> float:
    return sum(option.error for option in options)


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_the_choice_lands_within_two_percent_below_its_bytes(part: float) -> None:
    found = layers()
    target = part * sum(layer.options[-1].bytes for layer in found)
    assert 0.98 * target <= size(choose(found, target)) <= target


def test_the_choice_has_less_error_than_one_width_of_the_same_size() -> None:
    found = layers()
    uniform = [layer.options[1] for layer in found]
    mixed = choose(found, size(uniform))
    assert error(mixed) < error(uniform) / 2 and len({option.bits for option in mixed}) == 3


def test_the_choice_is_within_a_hair_of_the_best_of_all() -> None:
    found = layers(7, seed=3)
    target = 0.5 * sum(layer.options[-1].bytes for layer in found)
    every = itertools.product(*(layer.options for layer in found))
    best = min(error(list(options)) for options in every if size(list(options)) <= target)
    assert best <= error(choose(found, target)) < 1.5 * best


def test_an_error_target_is_met_with_no_more_bytes_than_it_needs() -> None:
    found = layers()
    loose, strict = choose(found, max_error=1e-2), choose(found, max_error=1e-4)
    assert error(loose) <= 1e-2 and error(strict) <= 1e-4 and size(loose) < size(strict)


def test_an_option_that_is_larger_and_no_better_is_never_taken() -> None:
    options = (Option(4, 100, 1.0), Option(8, 200, 2.0), Option(16, 400, 0.5))
    assert choose([Layer(Component.UNET, "/one", options)])[0].bits == 16
    assert choose([Layer(Component.UNET, "/one", options)], 300)[0].bits == 4


def test_a_target_below_the_smallest_options_takes_the_smallest() -> None:
    assert {option.bits for option in choose(layers(), 1)} == {4}
