"""Convolutions as products of shifted copies side by side, so that MatMulNBits can hold their weights.

Knows shapes and nodes; how a weight is packed is `quantize`'s business. A convolution with weights behind a
DequantizeLinear widens them in every call, and ONNX Runtime widens those of the whole graph before the first
one is used. The product reads 4-bit weights as they are, and is as fast as the convolution in float32.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels: (B,C,H,W) to (B,H,W,C) and back
END = 2**31 - 1  # of a slice that goes on to the end


def is_product(node: onnx.NodeProto) -> bool:
    """Whether a convolution of two dimensions can be written as one product: not grouped, not dilated."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        node.op_type == "Conv"
        and found.get("group", 1) == 1
        and set(found.get("dilations", (1,))) == {1}
        and found.get("auto_pad", b"NOTSET") == b"NOTSET"
        and len(found.get("kernel_shape", (0, 0))) == 2
    )


def as_matrix(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A convolution's weight (O,C,h,w) as the weight (h*w*C, O) of the product."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, weight.shape[0])


class Patches:
    """The nodes around the product of one convolution; `names` gives constants their place in the graph."""

    def __init__(self, node: onnx.NodeProto, kernel: Sequence[int]) -> None:
        found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self.node, self.kernel = node, tuple(kernel)
        self.strides: Sequence[int] = found.get("strides", (1, 1))
        self.pads: Sequence[int] = found.get("pads", (0, 0, 0, 0))
        self.constants: dict[str, NDArray[Any]] = {}

    def before(self) -> Iterator[onnx.NodeProto]:
        """From the picture to rows of `h * w * C` numbers, one for each place of the answer."""
        stem = self.node.output[0]
        yield helper.make_node("Transpose", [self.node.input[0]], [f"{stem}.last"], perm=TO_LAST)
        source = f"{stem}.last"
        if any(self.pads):
            top, left, bottom, right = self.pads
            pads = self.constant(f"{stem}.pads", [0, top, left, 0, 0, bottom, right, 0])
            yield helper.make_node("Pad", [source, pads], [f"{stem}.padded"])
            source = f"{stem}.padded"
        if self.kernel == (1, 1) and set(self.strides) == {1}:
            self.rows = source
            return
        shifted = []
        for down in range(self.kernel[0]):
            for right in range(self.kernel[1]):
                name = f"{stem}.{down}.{right}"
                # Ends count from the end, so that the graph holds for pictures of any size.
                ends = [size - 1 - shift for size, shift in zip(self.kernel, (down, right), strict=True)]
                inputs = [
                    source,
                    self.constant(f"{name}.starts", [down, right]),
                    self.constant(f"{name}.ends", [-end if end else END for end in ends]),
                    self.constant(f"{stem}.axes", [1, 2]),
                    self.constant(f"{stem}.steps", list(self.strides)),
                ]
                yield helper.make_node("Slice", inputs, [name])
                shifted.append(name)
        yield helper.make_node("Concat", shifted, [f"{stem}.rows"], axis=3)
        self.rows = f"{stem}.rows"

    def after(self, product: str) -> onnx.NodeProto:
        """From the product (B,H,W,O) to what the convolution answered."""
        return helper.make_node("Transpose", [product], list(self.node.output), perm=TO_FIRST)

    def constant(self, name: str, value: Sequence[int]) -> str:
        self.constants[name] = np.array(value, dtype=np.int64)
        return name
