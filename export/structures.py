"""The structure of a component: its graph without weights, and where in the checkpoint each weight lies.

Knows how a module is built without weights and which files it is made of; what the graph computes is written
in `language` or traced in `traced`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from storyv_lite.checkpoint import WEIGHTS
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.export.capture import check_signature, quiet
from storyv_lite.export.language import language_graph
from storyv_lite.export.traced import Origins, empty, traced_structure
from storyv_lite.export.weights import Structure, Weights, of_folder
from storyv_lite.modeling.checkpoints import misfit, new_component, refuse_misfits
from storyv_lite.modeling.components import build

HEAD = "lm_head.weight"  # which drawing does not need, and which may be tied to the table


@contextmanager
def structure_of(
    component: Component,
    checkpoint: Path,
    dims: Dimensions,
    fused: bool = True,
    any_size: bool = False,
) -> Iterator[Structure]:
    """The structure of one component; its weights can be read while the context lasts.

    `fused` and `any_size` are those of `traced_structure`. Raises `BundleError` for a faulty checkpoint,
    `ConfigError` for a model that cannot be written.
    """
    with ExitStack() as opened:
        if component is Component.LANGUAGE_MODEL:
            folder = checkpoint / component
            module, weights = _bare(folder), opened.enter_context(of_folder(folder))
            _check(module, weights, folder)
            yield _language(module, weights, dims)
            return
        origins: Origins = {}

        def load(folder: Path) -> nn.Module:
            module, weights = _bare(folder), opened.enter_context(of_folder(folder))
            _check(module, weights, folder)
            return empty(module, weights, origins).eval()

        with quiet():
            whole = build(component, checkpoint, dims, load)
        yield traced_structure(whole, origins, component, dims, fused, any_size)


def _language(module: Any, weights: Weights, dims: Dimensions) -> Structure:
    wanted = signature(Component.LANGUAGE_MODEL, dims)
    prefix = f"{module.base_model_prefix}."
    own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    structure = language_graph(module.base_model, own, wanted)
    check_signature(structure.model, wanted, Component.LANGUAGE_MODEL)
    return structure


def _bare(folder: Path) -> Any:
    """The module of a component's folder without weights, its small tables of positions computed."""
    from accelerate import init_empty_weights

    with quiet(), init_empty_weights(include_buffers=False):
        return new_component(folder)


def _check(module: nn.Module, weights: Weights, folder: Path) -> None:
    own = module.state_dict()
    problems = [problem for name, weight in weights.items() if (problem := misfit(name, weight.shape, own))]
    refuse_misfits(folder / WEIGHTS, problems, [name for name in own if name not in {*weights, HEAD}])
