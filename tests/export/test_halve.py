"""Graphs in float16: what they answer, and what stays in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component
from storyv_lite.coverage import Stored, coverage_of
from storyv_lite.errors import ConfigError
from storyv_lite.export.capture import load_graph
from storyv_lite.export.halve import FLOAT, HALF, halve
from storyv_lite.export.verify import compare
from storyv_lite.export.weight_parity import check_weights
from storyv_lite.quantization import DRAWING, SCHEMES, Method, plan


def answer(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def test_a_halved_unet_answers_as_the_wide_one_at_every_timestep(tiny_bundle: Path) -> None:
    dims = Bundle.open(tiny_bundle).model.dimensions
    wide = load_graph(tiny_bundle / "unet")
    half = halve(wide)
    random = np.random.default_rng(0)
    size = (2, dims.latent_channels, dims.latent_size, dims.latent_size)
    feed = {
        "sample": random.standard_normal(size).astype(np.float32),
        "encoder_hidden_states": random.standard_normal(
            (2, dims.text_tokens, dims.cross_attention_dim)
        ).astype(np.float32),
    }
    for timestep in (1, 999):
        given = {**feed, "timestep": np.array([timestep])}
        found = answer(half, given)
        assert found.dtype == np.float32 and compare(found, answer(wide, given)).snr_db > 50


def test_weights_are_halved_and_what_leads_to_sines_and_cosines_is_not(tiny_bundle: Path) -> None:
    model = load_graph(tiny_bundle / "unet")
    half = halve(model)
    wide = {tensor.name for tensor in half.graph.initializer if tensor.data_type == FLOAT}
    readers = {node.op_type for node in half.graph.node if wide.intersection(node.input)}
    assert wide and readers <= {"Mul", "Resize"}  # the frequencies, and how far a grid grows
    waves = {name for node in half.graph.node if node.op_type in ("Sin", "Cos") for name in node.output}
    assert waves and all(node.op_type == "Cast" for node in half.graph.node if waves.intersection(node.input))
    assert {value.type.tensor_type.elem_type for value in half.graph.output} == {FLOAT}
    assert sum(tensor.data_type == HALF for tensor in half.graph.initializer) > 20
    assert not any(tensor.data_type == HALF for tensor in model.graph.initializer)  # the source is as it was
    assert not check_weights("unet", half, model)


def test_what_is_halved_is_told_as_16_bits_and_what_has_8_as_8() -> None:
    stored = [Stored("a", Method.WIDE, 10, 40), Stored("b", Method.STATIC, 10, 14)]
    told = coverage_of(stored, SCHEMES["int8-symmetric"][Component.UNET])
    found = [(group["bits"], group["bytes"]) for group in told["groups"]]
    assert found == [(16, 20), (8, 14)] and told["default"] == "static"
    assert coverage_of(stored[:1], SCHEMES["half"][Component.UNET])["default"] == "half"


def test_only_what_draws_can_be_computed_in_sixteen_bits() -> None:
    chosen = plan("int4,half")
    assert {component for component, scheme in chosen.items() if scheme.name == "half"} == set(DRAWING)
    assert chosen == {**plan("int4"), **{component: plan("half")[component] for component in DRAWING}}
    with pytest.raises(ConfigError, match="`half` is for unet, vae_decoder; `language_model` cannot"):
        plan("int8,llm=half")
