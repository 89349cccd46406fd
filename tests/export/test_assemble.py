"""The export recipe: the gate holds, what is written is whole, and the right checkpoint is found."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import storyv_lite
from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import checkpoint_hash, frames_read, read_checkpoint
from storyv_lite.cli import app
from storyv_lite.components import Component, signature
from storyv_lite.errors import BundleError, ConfigError, OutputError, ParityError
from storyv_lite.export.assemble import export_checkpoint, newest_checkpoint
from storyv_lite.export.capture import load_graph, save_graph
from storyv_lite.export.making import making
from storyv_lite.export.mixed import Target
from storyv_lite.export.specs import GRAPHS, dummy_inputs
from storyv_lite.export.story_parity import ssim
from storyv_lite.export.streamed import stream_checkpoint
from storyv_lite.export.verify import LIMITS, compare, failures, refuse, save_cases, verify
from storyv_lite.modeling.components import build
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
        assert sum(group["parameters"] for group in variant.weights["groups"]) > 100
    assert bundle.parity["psnr_db"] > 15 and not bundle.degraded
    assert not list(tiny_bundle_int8.rglob("*.npz"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_mixed_bundle_stays_below_its_bytes_and_keeps_the_table_of_its_choice(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    most = Bundle.open(tiny_bundle).total_bytes // 2
    target = Target(bytes=most)
    bundle = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "mixed", "int4", target=target))
    assert 0.85 * most < bundle.total_bytes <= most  # at this size what the manifest may take shows
    rows = bundle.mixture["layers"]
    assert {row["component"] for row in rows} == {"language_model", "mapper", "unet", "vae_decoder"}
    assert len({row["bits"] for row in rows}) > 1 and bundle.mixture["predicted_mse"] > 0
    for component in (Component.UNET, Component.MAPPER):
        groups = bundle.variant(component).weights["groups"]
        stored = {layer: group["bits"] for group in groups for layer in group["layers"]}
        chosen = {row["layer"]: row["bits"] for row in rows if row["component"] == component}
        assert chosen == {layer: stored[layer] for layer in chosen}
    with pytest.raises(ConfigError, match="the smallest bundle has about"):
        export_checkpoint(tiny_checkpoint, tmp_path / "small", "int4", target=Target(bytes=10_000))


def test_an_interrupted_export_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(message: str) -> None:
        if message.startswith("capture fusion"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("export", "scheme", "last"),
    [
        (export_checkpoint, "int8", "verify stories"),
        (stream_checkpoint, "int4,unet=int4,vae=int4,fusion=int4", "write the token table"),
    ],
)
def test_a_checkpoint_that_is_trained_meanwhile_is_not_exported(
    export: Callable[..., Path], scheme: str, last: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)

    def train(message: str) -> None:
        if message == last:
            os.utime(folder / "unet" / "model.safetensors")

    with pytest.raises(BundleError, match="was changed while it was exported"):
        export(folder, tmp_path / "out", scheme, progress=train)
    assert not (tmp_path / "out").exists()


def test_a_taken_folder_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        export_checkpoint(tiny_checkpoint, tmp_path / "out")


def test_a_folder_that_is_no_bundle_is_never_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("Dear Luna")
    for write in (export_checkpoint, stream_checkpoint):
        with pytest.raises(OutputError, match="replaces only a bundle"):
            write(tiny_checkpoint, tmp_path / "out", "fp16", force=True)
    assert (tmp_path / "out" / "letter.txt").read_text() == "Dear Luna"


def test_a_missing_component_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, broken)
    shutil.rmtree(broken / "character_encoder")
    with pytest.raises(BundleError, match="character_encoder"):
        export_checkpoint(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


KILLED = """
import os, signal, sys
from pathlib import Path
from storyv_lite.export.assemble import export_checkpoint
def told(message):
    if message.startswith("capture fusion"):
        os.kill(os.getpid(), signal.SIGKILL)
export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), force=True, progress=told)
"""


@pytest.mark.skipif(os.name == "nt", reason="a process there cannot kill itself so")
def test_a_killed_export_leaves_the_old_bundle_whole_and_the_next_one_clears_up(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    command = [sys.executable, "-c", KILLED, str(tiny_checkpoint), str(out)]
    root = str(Path(storyv_lite.__file__).parents[1])
    child = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONPATH": root})
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert (out / "manifest.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
    with making(out, "partial", force=True, keep=False):
        pass
    assert list(tmp_path.iterdir()) == [out]


def test_weights_in_several_files_are_exported_with_little_memory_alone(
    tiny_checkpoint: Path, tmp_path: Path, split_into_shards: Callable[[Path], None]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    split_into_shards(folder / "language_model")
    with pytest.raises(ConfigError, match="`.*language_model` has its weights in several files") as fault:
        export_checkpoint(folder, tmp_path / "out")
    assert fault.value.hint == "add `--low-memory`"


def test_a_cut_calibration_file_is_told_before_anything_is_made(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    file = folder / "calibration.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(BundleError, match="`.*calibration.jsonl` is damaged"):
        export_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_disk_is_told_before_anything_is_made(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(OutputError, match="has 1000 B free; export needs about [0-9.]+ MiB"):
        export_checkpoint(tiny_checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_tensor_that_does_not_fit_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, broken)
    tensors = load_file(broken / "mapper" / "model.safetensors")
    missing, odd = sorted(tensors)[:2]
    del tensors[missing]
    tensors[odd] = tensors[odd][..., :-1].contiguous()
    save_file({**tensors, "stranger": torch.zeros(2)}, broken / "mapper" / "model.safetensors")
    with pytest.raises(BundleError) as caught:
        export_checkpoint(broken, tmp_path / "out")
    for part in (f"lacks `{missing}`", f"`{odd}` in the shape", "holds `stranger`"):
        assert part in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_checkpoint_in_the_making_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "half")
    (tmp_path / "half" / "checkpoint.json").write_text(json.dumps({"schema": 1, "stages": {}}))
    with pytest.raises(BundleError, match="lacks `dimensions`"):
        export_checkpoint(tmp_path / "half", tmp_path / "out")


def wrong_scale(weights: list[onnx.TensorProto]) -> None:
    change(weights[-1], lambda weight: weight * np.float32(1.5))


def swapped(weights: list[onnx.TensorProto]) -> None:
    first, second = (numpy_helper.to_array(tensor).copy() for tensor in weights[:2])
    change(weights[0], lambda _: second)
    change(weights[1], lambda _: first)


def not_a_number(weights: list[onnx.TensorProto]) -> None:
    change(weights[0], lambda weight: np.where(np.arange(weight.size).reshape(weight.shape), weight, np.nan))


def nothing(weights: list[onnx.TensorProto]) -> None:
    for tensor in weights:
        if tensor.dims and tensor.data_type == onnx.TensorProto.FLOAT:  # shapes and constants stay
            change(tensor, np.zeros_like)


def change(tensor: onnx.TensorProto, make: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    value = make(numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_scale, r"`mapper` has snr_db -?[0-9.]+; 32 is needed"),
        (swapped, r"`mapper` has snr_db -?[0-9.]+; 32 is needed"),
        (not_a_number, "`mapper` answers with NaN"),
        (nothing, "`mapper` answers with one constant"),
    ],
)
def test_planted_damage_fails_the_gate(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    damage: Callable[[list[onnx.TensorProto]], None],
    message: str,
) -> None:
    dims = Bundle.open(tiny_bundle, verify=False).model.dimensions
    specs, inputs = signature(Component.MAPPER, dims), dummy_inputs(signature(Component.MAPPER, dims))
    answer = build(Component.MAPPER, tiny_checkpoint, dims)(*inputs)
    case = ({specs.inputs[0].name: inputs[0].numpy()}, {specs.outputs[0].name: answer.numpy()})
    model = load_graph(tiny_bundle / Component.MAPPER)
    folders, schemes = {"mapper": tmp_path}, {"mapper": "int8-weights"}
    save_graph(model, tmp_path)
    save_cases(tmp_path, [case])
    refuse(failures(verify(folders), schemes, {}))
    layers = [node.input[1] for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    weights = [tensor for tensor in model.graph.initializer if tensor.name in layers]
    same = [tensor for tensor in weights if tensor.dims == weights[0].dims]
    damage(same if damage is swapped else list(model.graph.initializer) if damage is nothing else weights)
    save_graph(model, tmp_path)
    with pytest.raises(ParityError, match=message):
        refuse(failures(verify(folders), schemes, {}))


def test_stories_are_held_to_the_loosest_scheme_in_the_bundle() -> None:
    sound = {"unet": {"snr_db": 90.0, "spread": 1.0}, "mapper": {"snr_db": 90.0, "spread": 1.0}}
    story = {"image_states_cosine": 1.0, "latent_cosine": 1.0, "psnr_db": 20.0, "ssim": 0.1}
    assert not failures(sound, {"unet": "int8", "mapper": "fp16"}, story)
    (failure,) = failures(sound, {"unet": "fp16", "mapper": "fp16"}, story)
    assert str(failure) == "`story` has psnr_db 20; 30 is needed"
    assert failures(sound, {"unet": "fp16", "mapper": "fp16"}, {**story, "latent_cosine": 0.5}) != [failure]


@pytest.mark.slow
def test_a_degraded_bundle_is_written_only_when_allowed_and_says_so_when_it_draws(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = {name: replace(limits, snr_db=150.0) for name, limits in LIMITS.items()}
    monkeypatch.setattr("storyv_lite.export.verify.LIMITS", strict)
    with pytest.raises(ParityError, match=r"`mapper` has snr_db [0-9.]+; 150 is needed"):
        export_checkpoint(tiny_checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    bundle = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "out", allow_degraded=True))
    assert {"mapper", "unet"} <= {one.component for one in bundle.degraded}
    (tmp_path / "story.txt").write_text("Milo is waving.")
    command = ["render", str(tmp_path / "story.txt"), "--bundle", str(tmp_path / "out"), "--device", "cpu"]
    answer = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "drawn")])
    assert answer.exit_code == 0 and "this bundle is degraded: `" in answer.stderr


def test_a_graph_that_answers_in_another_shape_fails_the_gate(tiny_bundle: Path, tmp_path: Path) -> None:
    dims = Bundle.open(tiny_bundle, verify=False).model.dimensions
    specs = signature(Component.MAPPER, dims)
    save_graph(load_graph(tiny_bundle / Component.MAPPER), tmp_path)
    inputs = {specs.inputs[0].name: dummy_inputs(specs)[0].numpy()}
    save_cases(tmp_path, [(inputs, {specs.outputs[0].name: np.zeros((1, 2, 3), np.float32)})])
    with pytest.raises(ParityError, match=r"has the shape .*; \(1, 2, 3\) is needed"):
        verify({"mapper": tmp_path})


def test_structural_similarity_is_one_for_equal_pictures_and_falls_with_noise() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    noise = random.integers(0, 256, picture.shape)
    near, far = (((1 - part) * picture + part * noise).astype(np.uint8) for part in (0.1, 0.6))
    assert ssim(picture, picture) == 1 and 1 > ssim(near, picture) > 0.9 > ssim(far, picture)


def test_not_a_number_is_no_parity() -> None:
    parity = compare(np.array([np.nan, 1.0]), np.array([1.0, 1.0]))
    assert not parity.snr_db >= 80


def test_the_newest_checkpoint_is_the_one_made_last(tmp_path: Path) -> None:
    for name, created in (("a", "2026-02-01T00:00:00+00:00"), ("b", "2026-01-01T00:00:00+00:00")):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text(json.dumps({"schema": 1, "created": created}))
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "a"


def test_a_bundle_reads_what_is_best_at_once_and_no_more_than_the_alignment_did() -> None:
    toon, paper = (as_dict(load_config(preset)) for preset in ("toon", "opt-6.7b"))
    assert frames_read(toon) == toon["align"]["read_frames"] < toon["align"]["context_frames"]
    assert frames_read(paper) == paper["align"]["max_frames"] < paper["align"]["read_frames"]
    toon["align"]["context_frames"] = 12
    assert frames_read(toon) == 12
    del toon["align"]["context_frames"], toon["align"]["read_frames"]  # as before those settings
    assert frames_read(toon) == toon["align"]["max_frames"]
