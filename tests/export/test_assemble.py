"""The export recipe: the gate holds, what is written is whole, and the right checkpoint is found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from storyv_lite.bundle import Bundle
from storyv_lite.components import Component, signature
from storyv_lite.errors import BundleError, OutputError, ParityError
from storyv_lite.export.assemble import export_checkpoint, newest_checkpoint
from storyv_lite.export.capture import load_graph, save_graph
from storyv_lite.export.manifest import checkpoint_hash, trained_frames
from storyv_lite.export.specs import GRAPHS, build, dummy_inputs
from storyv_lite.export.verify import compare, save_cases, verify
from storyv_lite.modeling.checkpoints import read_checkpoint
from storyv_lite.presets import as_dict, load_config
from storyv_lite.quantization import plan
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Story


def test_a_bundle_opens_and_tells_where_it_came_from(tiny_checkpoint: Path, tiny_bundle_int8: Path) -> None:
    bundle = Bundle.open(tiny_bundle_int8)
    assert bundle.name == "tiny-int8" and set(bundle.components) == set(Component)
    assert bundle.model.dimensions.as_dict() == read_checkpoint(tiny_checkpoint)["dimensions"]
    assert bundle.model.context.frames == 8 and bundle.model.prediction_type == "v_prediction"
    assert bundle.provenance["checkpoint_sha256"] == checkpoint_hash(tiny_checkpoint)
    assert [character.name for character in bundle.characters] == ["bruno", "luna", "milo"]
    for component in GRAPHS:
        variant = bundle.variant(component)
        assert variant.scheme == plan("int8")[component].name and variant.parity["cases"] > 1
    assert not list(tiny_bundle_int8.rglob("*.npz"))


def test_exporting_again_gives_the_same_hashes(
    tiny_checkpoint: Path, tiny_bundle_int8: Path, tmp_path: Path
) -> None:
    again = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "again"))
    assert again.components == Bundle.open(tiny_bundle_int8).components


def test_every_component_in_four_bits_passes_the_gate_and_draws(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    components = ",".join(f"{component}=int4" for component in GRAPHS)
    packed = export_checkpoint(tiny_checkpoint, tmp_path / "four", scheme=components)
    model = load_graph(packed / "unet")
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    wide = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in weights]
    assert max(numpy_helper.to_array(weights[n.input[1]]).size for n in wide) < 2048
    assert len([n for n in model.graph.node if n.op_type == "MatMulNBits"]) > 20
    story, drawn = Story.from_text("Milo is waving. He is running."), []
    for folder in (tiny_bundle, packed):
        pipeline = StoryPipeline.from_bundle(folder, "cpu", threads=1)
        drawn.append(np.stack([frame.image for frame in pipeline.draw(story)]))
    assert compare(drawn[1], drawn[0]).psnr_db > 15


def test_an_interrupted_export_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message.startswith("capture fusion"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_taken_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        export_checkpoint(tiny_checkpoint, tmp_path / "out")


def test_a_missing_component_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, broken)
    shutil.rmtree(broken / "character_encoder")
    with pytest.raises(BundleError, match="character_encoder"):
        export_checkpoint(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_in_the_making_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "half")
    (tmp_path / "half" / "checkpoint.json").write_text(json.dumps({"schema": 1, "stages": {}}))
    with pytest.raises(BundleError, match="lacks `dimensions`"):
        export_checkpoint(tmp_path / "half", tmp_path / "out")


def test_planted_damage_fails_the_gate(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    dims = Bundle.open(tiny_bundle, verify=False).model.dimensions
    specs, inputs = signature(Component.MAPPER, dims), dummy_inputs(signature(Component.MAPPER, dims))
    answer = build(Component.MAPPER, tiny_checkpoint, dims)(*inputs)
    case = ({specs.inputs[0].name: inputs[0].numpy()}, {specs.outputs[0].name: answer.numpy()})
    model = load_graph(tiny_bundle / Component.MAPPER)
    folders, schemes = {"mapper": tmp_path}, {"mapper": "fp32"}
    save_graph(model, tmp_path)
    save_cases(tmp_path, [case])
    assert verify(folders, schemes)["mapper"]["snr_db"] > 80
    damaged = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    weight = numpy_helper.to_array(damaged) * np.float32(1.5)
    damaged.CopyFrom(numpy_helper.from_array(weight, damaged.name))
    save_graph(model, tmp_path)
    with pytest.raises(ParityError, match=r"`mapper` \(fp32\) has snr_db -?[0-9.]+; 80.0 is needed"):
        verify(folders, schemes)


def test_a_graph_that_answers_in_another_shape_fails_the_gate(tiny_bundle: Path, tmp_path: Path) -> None:
    dims = Bundle.open(tiny_bundle, verify=False).model.dimensions
    specs = signature(Component.MAPPER, dims)
    save_graph(load_graph(tiny_bundle / Component.MAPPER), tmp_path)
    inputs = {specs.inputs[0].name: dummy_inputs(specs)[0].numpy()}
    save_cases(tmp_path, [(inputs, {specs.outputs[0].name: np.zeros((1, 2, 3), np.float32)})])
    with pytest.raises(ParityError, match=r"has the shape .*; \(1, 2, 3\) is needed"):
        verify({"mapper": tmp_path}, {"mapper": "fp32"})


def test_not_a_number_is_no_parity() -> None:
    parity = compare(np.array([np.nan, 1.0]), np.array([1.0, 1.0]))
    assert not parity.snr_db >= 80


def test_the_newest_checkpoint_is_the_one_made_last(tmp_path: Path) -> None:
    for name, created in (("a", "2026-02-01T00:00:00+00:00"), ("b", "2026-01-01T00:00:00+00:00")):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"schema": 1, "created": created}))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "a"


def test_the_context_is_as_long_as_the_alignment_read_at_once() -> None:
    toon, paper = (as_dict(load_config(preset)) for preset in ("toon", "opt-6.7b"))
    assert trained_frames(toon) == toon["align"]["context_frames"]
    assert trained_frames(paper) == paper["align"]["max_frames"] < paper["align"]["context_frames"]
    toon["align"]["context_frames"] = 12
    assert trained_frames(toon) == 12
    del toon["align"]["context_frames"]  # as in checkpoints of before that setting
    assert trained_frames(toon) == toon["align"]["max_frames"]
