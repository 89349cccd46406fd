"""How products with 8-bit weights are computed."""

from pathlib import Path

import onnx
import onnxruntime

from storyv_lite.runtime.backends.ort import session_options


def test_products_with_8_bit_weights_round_their_activations_to_8_bits_too(
    tiny_bundle_int8: Path, tmp_path: Path
) -> None:
    """Whatever the library's default is: pictures and times depend on it."""
    options = session_options(threads=1)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    graph = str(tiny_bundle_int8 / "mapper" / "model.onnx")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    found = [
        {attribute.name: attribute.i for attribute in node.attribute}
        for node in nodes
        if node.op_type == "MatMulNBits"
    ]
    assert found and {(one["bits"], one["accuracy_level"]) for one in found} == {(8, 4)}
