"""Captured graphs: same bytes every time, nothing of this machine inside, exactly the table's signature."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, Dimensions, Signature, signature
from storyv_lite.errors import ParityError
from storyv_lite.export.capture import DATA, GRAPH, capture, check_signature, load_graph, save_graph
from storyv_lite.export.simplify import NAMED, shorten
from storyv_lite.export.specs import GRAPHS, dummy_inputs
from storyv_lite.modeling.components import build


def dimensions(bundle: Path) -> Dimensions:
    return Bundle.open(bundle, verify=False).model.dimensions


def test_capturing_again_gives_the_same_bytes(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    dims = dimensions(tiny_bundle)
    for component in GRAPHS:
        model = shorten(capture(build(component, tiny_checkpoint, dims), component, dims))
        save_graph(model, tmp_path / component)
        for name in (GRAPH, DATA):
            again, first = (folder / component / name for folder in (tmp_path, tiny_bundle))
            assert again.read_bytes() == first.read_bytes(), f"{component}/{name}"


@pytest.mark.parametrize("fixture", ["tiny_bundle", "tiny_bundle_int8"])
def test_a_bundle_holds_no_absolute_path(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    secrets = [str(Path.cwd()), str(Path.home()), str(bundle.parent), "site-packages", ".py"]
    for file in bundle.rglob("*"):
        content = file.read_bytes() if file.is_file() and file.suffix in (".onnx", ".data") else b""
        assert not [secret for secret in secrets if secret.encode() in content], file


def test_graphs_carry_no_metadata_and_no_docs(tiny_bundle: Path) -> None:
    for component in GRAPHS:
        model = load_graph(tiny_bundle / component)
        assert not model.metadata_props and not model.doc_string
        assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]


def test_layers_keep_their_module_path_and_nothing_else_is_named(tiny_bundle: Path) -> None:
    nodes = load_graph(tiny_bundle / Component.UNET).graph.node
    assert all(node.name.startswith("/unet/") for node in nodes if node.op_type == "Conv")
    assert not [node.name for node in nodes if node.op_type not in NAMED and node.name]


def test_a_different_signature_is_refused(tiny_bundle: Path) -> None:
    dims = dimensions(tiny_bundle)
    model = load_graph(tiny_bundle / Component.FUSION)
    wider = signature(Component.FUSION, replace(dims, cross_attention_dim=64))
    with pytest.raises(ParityError, match="`hidden_states` of `fusion` has an axis of 32; `64` is needed"):
        check_signature(model, wider, Component.FUSION)
    wanted = signature(Component.FUSION, dims)
    fewer = Signature(wanted.inputs[:2], wanted.outputs)
    with pytest.raises(ParityError, match="needed are hidden_states, image_embeds"):
        check_signature(model, fewer, Component.FUSION)
    renamed = Signature(wanted.inputs, (replace(wanted.outputs[0], dtype="float16"),))
    with pytest.raises(ParityError, match="is float32; float16 is needed"):
        check_signature(model, renamed, Component.FUSION)


@pytest.mark.parametrize("characters", [0, 1, 3])
def test_fusion_takes_any_number_of_characters(tiny_bundle: Path, characters: int) -> None:
    dims = dimensions(tiny_bundle)
    states = np.random.default_rng(0).normal(size=(1, dims.text_tokens, dims.cross_attention_dim))
    feed = {
        "hidden_states": states.astype(np.float32),
        "image_embeds": np.ones((characters, dims.cross_attention_dim), np.float32),
        "positions": np.arange(1, 1 + characters),
    }
    fused = _run(tiny_bundle / Component.FUSION, feed)[0]
    changed = np.flatnonzero((fused != feed["hidden_states"]).any(axis=2)[0])
    assert changed.tolist() == list(range(1, 1 + characters))


def test_the_unet_takes_one_and_two_samples(tiny_bundle: Path) -> None:
    specs = signature(Component.UNET, dimensions(tiny_bundle))
    two = {s.name: t.numpy() for s, t in zip(specs.inputs, dummy_inputs(specs), strict=True)}
    one = {name: array[:1] for name, array in two.items()}
    together, alone = (_run(tiny_bundle / Component.UNET, feed)[0] for feed in (two, one))
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def _run(folder: Path, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(folder / GRAPH, providers=["CPUExecutionProvider"])
    answers: list[Any] = session.run(None, feed)
    return answers
