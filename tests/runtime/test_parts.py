"""A component in several parts: whatever one call comes to, the next one is answered."""

from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from storyv_lite.runtime.backends.base import Tensors
from storyv_lite.runtime.backends.parts import Parts


def graph(nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str]) -> bytes:
    values = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in of] for of in (inputs, outputs)
    ]
    made = helper.make_graph(nodes, "part", *values)
    content: bytes = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return content


def run(session: ort.InferenceSession, given: Tensors) -> Tensors:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("whole", [False, True])
def test_a_first_call_that_fails_half_way_spoils_no_later_one(whole: bool) -> None:
    node = helper.make_node
    graphs = [
        graph([node("Neg", ["x"], ["a"]), node("Abs", ["x"], ["b"])], ["x"], ["a", "b"]),
        graph([node("MatMul", ["a", "z"], ["c"])], ["a", "z"], ["c"]),
        graph([node("Add", ["b", "c"], ["y"])], ["b", "c"], ["y"]),
    ]
    parts = Parts(
        [partial(ort.InferenceSession, g, providers=["CPUExecutionProvider"]) for g in graphs], ["y"], whole
    )
    x, z = np.ones((1, 2), np.float32), np.ones((2, 2), np.float32)
    with pytest.raises(Exception, match="MatMul"):
        parts.run({"x": x, "z": np.ones((3, 2), np.float32)}, run)
    for _ in range(2):
        np.testing.assert_array_equal(parts.run({"x": x, "z": z}, run)["y"], np.abs(x) - x @ z)
