"""A graph cut into parts that run one after another, each small enough to be held alone.

Knows nodes and how many weights each holds; not how they are stored. What costs nothing (lengths, tables of
angles, anything that follows from the graph's own inputs without a weight) is worked out anew in every part.
"""

from collections.abc import Sequence

import onnx
from onnx import helper

from storyv_lite.export.weights import Structure


def cut(structure: Structure, parameters: int) -> list[Structure]:
    """Parts of at most `parameters` weights each (one layer alone may have more), in order; at least one."""
    graph = structure.model.graph
    sizes = {name: weight.size for name, weight in structure.weights.items()}
    if sum(sizes.values()) <= parameters:
        return [structure]
    light = _light(graph, set(structure.weights))
    heavy = [node for index, node in enumerate(graph.node) if index not in light]
    free = [node for index, node in enumerate(graph.node) if index in light]
    bounds = _bounds(heavy, sizes, parameters, {value.name for value in graph.output})
    return [
        _part(structure, heavy, free, start, stop)
        for start, stop in zip((0, *bounds), (*bounds, len(heavy)), strict=True)
    ]


def _light(graph: onnx.GraphProto, weights: set[str]) -> set[int]:
    """Places of nodes that follow from inputs and small constants alone, cache and states left out."""
    small = {tensor.name for tensor in graph.initializer if tensor.name not in weights} | {""}
    small |= {v.name for v in graph.input if v.type.tensor_type.elem_type == onnx.TensorProto.INT64}
    found = set()
    for index, node in enumerate(graph.node):
        if node.op_type == "Shape" and set(node.input) <= {value.name for value in graph.input}:
            found.add(index)
            small.update(node.output)
        elif all(name in small for name in node.input):
            found.add(index)
            small.update(node.output)
    return found


def _bounds(
    nodes: Sequence[onnx.NodeProto], sizes: dict[str, int], parameters: int, given: set[str]
) -> list[int]:
    """Where to cut: as late as the size allows, in the last half of a part where fewest tensors cross."""
    last = {name: index for index, node in enumerate(nodes) for name in node.input}
    alive: set[str] = set()
    crossing = []  # tensors that a cut before node `index` has to pass on
    for index, node in enumerate(nodes):
        alive = {name for name in alive if last[name] >= index}
        crossing.append(len(alive))
        alive |= {name for name in node.output if name in last and name not in given | {""}}
    bounds, start = list[int](), 0
    while True:
        held, counts, seen = 0, list[int](), set[str]()
        for node in nodes[start:]:
            held += sum(sizes.get(name, 0) for name in set(node.input) - seen)
            seen |= set(node.input)
            counts.append(held)
        if held <= parameters:
            return bounds
        stop = start + max(1, sum(count <= parameters for count in counts))
        earliest = start + max(1, sum(count <= parameters // 2 for count in counts))
        # of equal ones the latest
        start = min(range(min(earliest, stop), stop + 1), key=lambda place: (crossing[place], -place))
        bounds.append(start)


def _part(
    structure: Structure,
    heavy: Sequence[onnx.NodeProto],
    free: Sequence[onnx.NodeProto],
    start: int,
    stop: int,
) -> Structure:
    graph = structure.model.graph
    nodes = list(heavy[start:stop])
    needed = {name for node in nodes for name in node.input} - {""}
    for node in reversed(free):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(set(node.input) - {""})
    made = _outputs(nodes)
    before = _outputs(heavy[:start])
    later = {name for node in heavy[stop:] for name in node.input} - {""}
    part = onnx.ModelProto()
    part.CopyFrom(structure.model)
    for field in (part.graph.node, part.graph.initializer, part.graph.input, part.graph.output):
        del field[:]
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
    part.graph.input.extend(value for value in graph.input if value.name in needed)
    part.graph.input.extend(_floats(name) for name in sorted((needed - made) & before))
    part.graph.output.extend(value for value in graph.output if value.name in made)
    given = {value.name for value in graph.output}
    passed = [name for node in heavy[start:stop] for name in node.output if name in later - given]
    part.graph.output.extend(map(_floats, passed))
    weights = {name: weight for name, weight in structure.weights.items() if name in needed}
    return Structure(part, weights)


def _outputs(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    return {name for node in nodes for name in node.output}


def _floats(name: str) -> onnx.ValueInfoProto:
    """A tensor that goes from part to part: activations are float32, whatever their shape."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
