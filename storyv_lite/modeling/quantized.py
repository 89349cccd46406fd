"""Linear layers in few bits, by bitsandbytes: NF4 with double quantization (Dettmers et al., 2023) and
LLM.int8() (Dettmers et al., 2022), whose activations are in 8 bits too, but for the outliers.

Knows one layer and its weight. Both work on CUDA and, more slowly, on the CPU.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from storyv_lite.modeling.loading import Quantize

QUANTIZED = ("nf4", "int8")
OUTLIERS = 6.0  # activations from here on are multiplied in 16 bits, as in the paper


def quantizer(name: str, device: torch.device, dtype: torch.dtype) -> Quantize:
    """What makes a layer of one of `QUANTIZED` on `device` that computes in `dtype`."""
    import bitsandbytes

    return partial(_nf4 if name == "nf4" else _int8, bitsandbytes.nn, device, dtype)


def _nf4(
    library: Any, device: torch.device, dtype: torch.dtype, empty: nn.Linear, weight: Tensor
) -> nn.Linear:
    layer: nn.Linear = library.Linear4bit(
        empty.in_features,
        empty.out_features,
        bias=False,
        compute_dtype=dtype,
        quant_type="nf4",
        device="meta",
    )
    four_bit = library.Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer.weight = four_bit.to(device)
    layer.bias = empty.bias
    # Where the processor has bf16 it would compute in that, whatever was asked for.
    layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return layer


def _int8(
    library: Any, device: torch.device, dtype: torch.dtype, empty: nn.Linear, weight: Tensor
) -> nn.Linear:
    layer: nn.Linear = library.Linear8bitLt(
        empty.in_features,
        empty.out_features,
        bias=False,
        has_fp16_weights=False,
        threshold=OUTLIERS,
        device="meta",
    )
    layer.weight = library.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(device)
    layer.bias = empty.bias
    return layer
