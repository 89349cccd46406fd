"""The structure of a component: its graph without weights, and where in the checkpoint each weight lies.

Knows how a module is built without weights; what the graph computes is written or traced elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storyv_lite.checkpoint import WEIGHTS
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.export.capture import check_signature, quiet
from storyv_lite.export.language import language_graph
from storyv_lite.export.weights import Structure, Weight, of_folder
from storyv_lite.modeling.checkpoints import misfit, new_component, refuse_misfits


@contextmanager
def structure_of(component: Component, checkpoint: Path, dims: Dimensions) -> Iterator[Structure]:
    """The structure of one component; its weights can be read while the context lasts.

    Raises `BundleError` for a faulty checkpoint, `ConfigError` for a model that cannot be written.
    """
    wanted = signature(component, dims)
    if component is not Component.LANGUAGE_MODEL:
        raise NotImplementedError(component)
    from accelerate import init_empty_weights

    folder = checkpoint / component
    with quiet(), init_empty_weights(include_buffers=False):
        module = new_component(folder)
    with of_folder(folder) as weights:
        own = module.state_dict()
        problems = [p for name, weight in weights.items() if (p := misfit(name, weight.shape, own))]
        head = ("lm_head.weight",)  # which drawing does not need, and which may be tied to the table
        refuse_misfits(folder / WEIGHTS, problems, [name for name in own if name not in {*weights, *head}])
        prefix = f"{module.base_model_prefix}."
        structure = language_graph(module.base_model, _below(weights, prefix), wanted)
        check_signature(structure.model, wanted, component)
        yield structure


def _below(weights: dict[str, Weight], prefix: str) -> dict[str, Weight]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
