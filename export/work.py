"""What a component works in, told from its graphs: the most bytes that lie between nodes at any time.

Knows shapes, and how ONNX Runtime uses them: nodes run in order, a tensor goes when its last reader has run,
what computes number by number writes over an input that nobody reads any more, and a new shape is a view.
Does not know kernels, what they hold inside, nor what the library fuses: that takes a little more or less.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx

from storyv_lite.components import Component, Dimensions, Signature, signature
from storyv_lite.export.simplify import inferred_shapes
from storyv_lite.export.specs import SMALL, opened
from storyv_lite.manifest import Part

Shapes = dict[str, tuple[int, ...]]

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
IN_PLACE = frozenset("Add Sub Mul Div Sigmoid Tanh Relu Clip Erf Exp Sqrt Neg Pow Gelu".split())
COUNTS = (1, 2, 4)  # of pictures, characters or evaluations at once
EIGHTHS = (2, 3, 4, 5, 6, 7, 8)  # of a side, that the decoder's tiles are told for


def work_of(
    component: Component, folder: Path, parts: Sequence[Part], dims: Dimensions
) -> dict[str, int] | None:
    """Bytes at work, for the manifest: of the decoder by cells per side, of others by how many run at once.

    None for the language model: what it works in follows from the tokens it reads. Raises `ValueError`.
    """
    if component is Component.LANGUAGE_MODEL:
        return None
    graphs = [onnx.load(folder / part.file, load_external_data=False) for part in parts]
    wanted = signature(component, dims)
    if component is Component.VAE_DECODER:
        sides = sorted({dims.latent_size * eighths // 8 for eighths in EIGHTHS} - {0})
        return {str(side): working_bytes(graphs, opened(wanted), 1, side) for side in sides}
    return {str(count): working_bytes(graphs, wanted, count) for count in COUNTS}


def working_bytes(graphs: Sequence[onnx.ModelProto], wanted: Signature, count: int, side: int = 0) -> int:
    """The most that tensors of `graphs`, run one after another, take; inputs and outputs included.

    `count` is the length of every free axis, `side` that of latents. What a graph gives to a later one stays
    to the end, as in the first call. Raises `ValueError` when a shape does not follow from the inputs'.
    """
    known: Shapes = {
        spec.name: tuple(
            axis if isinstance(axis, int) else side if axis in SMALL else count for axis in spec.axes
        )
        for spec in wanted.inputs
    }
    there = {name: _bytes(shape) for name, shape in known.items()}
    most = sum(there.values())
    for graph in graphs:
        shapes = inferred_shapes(graph, known)
        most = max(most, sum(there.values()) + _walk(graph.graph, shapes, there.keys()))
        for value in graph.graph.output:
            known[value.name] = shapes[value.name]
            there[value.name] = _bytes(shapes[value.name])
    return most


def _walk(graph: onnx.GraphProto, shapes: Shapes, given: Iterable[str]) -> int:
    """The most bytes of tensors that one graph makes; `given` lie elsewhere."""
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    nodes, widened = [], set[str]()
    for node in graph.node:
        if not all(name in fixed for name in node.input):
            nodes.append(node)
        elif node.op_type == "DequantizeLinear":
            widened.update(node.output)  # in every call, all of them first
        else:
            fixed.update(node.output)  # worked out when a session starts
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    last |= {value.name: len(nodes) for value in graph.output}
    rounded = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    # products read 8 bits as they are, and so does what reads rounded activations
    narrow = [node for node in nodes if node.op_type == "MatMul" or rounded.intersection(node.input[:1])]
    widened -= {name for node in narrow for name in node.input[1:]}
    owner = {name: "" for name in given}  # by tensor, the one whose memory it lies in
    until = {name: last[name] for name in widened}  # by owner, the last node that reads it
    size = {name: _bytes(shapes[name]) for name in widened}
    now = most = sum(size.values())
    for index, node in enumerate(nodes):
        fresh = [name for name in node.output if name in last]
        reused = _reused(node, index, shapes, owner, until)
        for name in fresh:
            if reused is not None:
                owner[name] = reused
                until[reused] = max(until.get(reused, 0), last[name])
                continue
            if name not in shapes:
                raise ValueError(f"the shape of `{name}` does not follow from those of the inputs")
            owner[name], until[name], size[name] = name, last[name], _bytes(shapes[name])
            now += size[name]
        most = max(most, now)
        for name in [name for name, end in until.items() if end <= index]:
            now -= size.pop(name, 0)
            del until[name]
    return most


def _reused(
    node: onnx.NodeProto, index: int, shapes: Shapes, owner: Mapping[str, str], until: Mapping[str, int]
) -> str | None:
    """The tensor whose memory the answer of a node lies in, if that is no new one."""
    if node.op_type in VIEWS:
        return owner.get(node.input[0])
    if node.op_type in IN_PLACE:
        for name in node.input:
            mine = owner.get(name)
            if mine and until[mine] == index and shapes[name] == shapes[node.output[0]]:
                return mine
    return None


def _bytes(shape: tuple[int, ...]) -> int:
    """Of a tensor of 4-byte numbers."""
    count = 4
    for axis in shape:
        count *= axis
    return count
