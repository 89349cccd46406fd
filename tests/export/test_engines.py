"""TensorRT engines: real ones built without a GPU, the key that says when one is right, and every refusal."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from storyv_lite.bundle import Bundle, hash_file, part_entry, variant_entry, write_manifest
from storyv_lite.cli import app
from storyv_lite.components import Component
from storyv_lite.engine import PORTABLE, covers, engine_variant, make_key, stale, unreadable
from storyv_lite.errors import BackendError, BundleError, MissingDependency, OutputError
from storyv_lite.export import engines
from storyv_lite.export.capture import DATA, GRAPH, load_graph, save_graph
from storyv_lite.export.engines import Builder, add_engines, choose_builder
from storyv_lite.export.halve import halve
from storyv_lite.export.quantize import quantize
from storyv_lite.export.simplify import shorten
from storyv_lite.manifest import Variant
from storyv_lite.optional import installed
from storyv_lite.quantization import DRAWING, SCHEMES, plan
from storyv_lite.runtime.backends import driver
from storyv_lite.runtime.backends.trt import read_engine

DECODER = Component.VAE_DECODER
needs_rtx = pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx is not installed; it exists for Linux and Windows"
)


@pytest.fixture(scope="module")
def builder() -> Builder:
    return choose_builder("tensorrt-rtx")


@pytest.fixture(scope="module")
def halved(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with float16 where it draws; do not write into it."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("bundles") / "halved"))
    for component in DRAWING:
        put(folder, component, "half", shorten(halve(load_graph(folder / component))))
    return folder


@pytest.fixture(scope="module")
def built(halved: Path, builder: Builder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an engine of the decoder, whose graph is the smallest; do not write into it."""
    folder = tmp_path_factory.mktemp("engines") / "built"
    shutil.copytree(halved, folder)
    (engine,) = add_engines(folder, builder, components=[DECODER])
    assert engine.seconds > 0 and engine.bytes == (folder / engine.file).stat().st_size > 100_000
    return folder


def copy(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def change_key(folder: Path, **changes: Any) -> None:
    """Rewrite the key of the decoder's engine, its digest included, as an older export would have."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    variant = manifest["components"]["vae_decoder"]["variants"][-1]
    key = make_key(
        Bundle.open(folder).variant(DECODER), "tensorrt-rtx", variant["engine"]["version"], PORTABLE
    )
    variant["engine"] = type(key)(**{**vars(key), **changes}).as_dict()
    file.write_text(json.dumps(manifest))


@needs_rtx
def test_an_engine_built_without_a_gpu_is_one_more_variant_whose_hash_is_checked(
    built: Path, builder: Builder, tmp_path: Path
) -> None:
    bundle = Bundle.open(built)
    variant = engine_variant(bundle, DECODER, "tensorrt-rtx")
    assert variant is not None and variant.scheme == "half" and variant.parity == {}
    assert variant.engine is not None and variant.engine["version"] == builder.version
    assert variant.engine["profiles"] == {"batch": [1, 2, 2]} and variant.engine["gpu"] == PORTABLE
    assert [v.backend for v in bundle.components[DECODER]] == ["onnx", "tensorrt-rtx"]
    assert (
        "engine"
        not in json.loads((built / "manifest.json").read_text())["components"]["mapper"]["variants"][0]
    )
    damaged = copy(built, tmp_path / "damaged")
    with (damaged / variant.parts[0].file).open("r+b") as file:
        file.write(b"nonsense")
    with pytest.raises(BundleError):
        Bundle.open(damaged)


@needs_rtx
def test_an_equal_key_uses_the_file_again_in_place_and_in_a_new_export(
    built: Path, halved: Path, builder: Builder, tmp_path: Path
) -> None:
    folder = copy(built, tmp_path / "again")
    before = {file: file.stat().st_mtime_ns for file in (folder / DECODER).iterdir()}
    (engine,) = add_engines(folder, builder, components=[DECODER])
    assert engine.seconds == 0.0
    assert {file: file.stat().st_mtime_ns for file in (folder / DECODER).iterdir()} == before
    fresh = copy(halved, tmp_path / "fresh")
    (other,) = add_engines(fresh, builder, earlier=built, components=[DECODER])
    assert other.seconds == 0.0 and hash_file(fresh / other.file) == hash_file(built / engine.file)


@needs_rtx
def test_a_stale_engine_is_refused_and_replaced_only_when_asked(
    built: Path, builder: Builder, tmp_path: Path
) -> None:
    folder = copy(built, tmp_path / "stale")
    change_key(folder, version="1.0")
    with pytest.raises(OutputError, match="built for the version `1.0`, and here it is") as caught:
        add_engines(folder, builder, components=[DECODER])
    assert f"storyv-lite export {folder} --target tensorrt-rtx --force" in caught.value.hint
    (engine,) = add_engines(folder, builder, force=True, components=[DECODER])
    assert engine.seconds > 0
    assert len(read_engine(Bundle.open(folder), DECODER, "tensorrt-rtx", "8.9")) == engine.bytes
    assert [file.name for file in (folder / DECODER).glob("*.tensorrt-rtx")] == [Path(engine.file).name]


@needs_rtx
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "1.0"}, "for the version `1.0`"),
        ({"graph": "0" * 64}, "for the graph `000000000000`"),
        ({"profiles": {"batch": (1, 1, 1)}}, "for the profiles"),
        ({"options": {"tf32": True}}, "for the options"),
        ({"gpu": "8.6"}, "for the gpu `8.6`, and here it is `8.9`"),
        ({"gpu": "9.0+"}, "for the gpu `9.0[+]`"),
        ({"gpu": "all+"}, "for the gpu"),
    ],
)
def test_an_engine_whose_key_differs_is_never_loaded(
    built: Path, tmp_path: Path, changes: Mapping[str, Any], reason: str
) -> None:
    folder = copy(built, tmp_path / "stale")
    assert len(read_engine(Bundle.open(folder), DECODER, "tensorrt-rtx", gpu="8.9")) > 100_000
    change_key(folder, **changes)
    with pytest.raises(BundleError, match=reason) as caught:
        read_engine(Bundle.open(folder), DECODER, "tensorrt-rtx", gpu="8.9")
    assert f"storyv-lite export {folder} --target tensorrt-rtx --force" in caught.value.hint


@needs_rtx
def test_a_key_that_was_edited_by_hand_is_no_key(built: Path, builder: Builder) -> None:
    variant = engine_variant(Bundle.open(built), DECODER, "tensorrt-rtx")
    assert variant is not None and variant.engine is not None
    assert "not that of what it says" in stale({**variant.engine, "key": "0"}, _key(built, builder))


@needs_rtx
@pytest.mark.parametrize(
    ("scheme", "reason"), [("int8", "zero point is not supported"), ("int4", "MatMulNBits")]
)
def test_a_scheme_that_the_builder_refuses_is_named_with_its_reason_and_nothing_is_written(
    scheme: str, reason: str, halved: Path, builder: Builder, tmp_path: Path
) -> None:
    folder = copy(halved, tmp_path / "refused")
    _store(folder, scheme)
    before = sorted(file.name for file in folder.rglob("*"))
    name = SCHEMES[scheme][DECODER].name
    with pytest.raises(BackendError, match=f"(?i)`vae_decoder` as `{name}` cannot become .*{reason}"):
        add_engines(folder, builder, components=[DECODER])
    assert sorted(file.name for file in folder.rglob("*")) == before
    assert unreadable(SCHEMES[scheme][DECODER])  # the command line knows it before anything is captured


@needs_rtx
def test_symmetric_eight_bits_become_an_engine(halved: Path, builder: Builder, tmp_path: Path) -> None:
    folder = copy(halved, tmp_path / "symmetric")
    _store(folder, "int8-symmetric")
    (engine,) = add_engines(folder, builder, components=[DECODER])
    assert engine.file.startswith("vae_decoder/int8-symmetric-") and engine.bytes > 100_000
    assert not unreadable(plan("unet=int8-symmetric")[Component.UNET])


@needs_rtx
@pytest.mark.slow
def test_a_checkpoint_becomes_a_bundle_with_engines_and_gives_them_to_the_next_export(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command = [
        "export",
        str(tiny_checkpoint),
        "--target",
        "tensorrt-rtx",
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    first, again = (CliRunner().invoke(app, [*command, *force]) for force in ([], ["--force"]))
    assert first.exit_code == again.exit_code == 0, first.output + again.output
    built, used = (json.loads(done.stdout.splitlines()[-1])["engines"] for done in (first, again))
    assert [engine["component"] for engine in built] == [str(component) for component in DRAWING]
    assert all(engine["seconds"] > 0 for engine in built) and not any(engine["seconds"] for engine in used)
    bundle = Bundle.open(tmp_path / "out")
    assert all(len(read_engine(bundle, c, "tensorrt-rtx", "8.9")) > 100_000 for c in DRAWING)
    assert bundle.variant(Component.UNET).parity["snr_db"] > 40
    assert "by tensorrt-rtx" in first.stderr and "--provider tensorrt-rtx" in first.stdout


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda module: False)
    with pytest.raises(MissingDependency, match="`tensorrt_rtx` is not installed") as caught:
        choose_builder()
    assert caught.value.hint == "pip install 'storyv-lite[tensorrt-rtx]'"


@needs_rtx
def test_which_builder_was_taken_is_said_with_the_reason() -> None:
    if not driver.problem():
        pytest.skip("this machine has a GPU")
    chosen = choose_builder()
    assert chosen.name == "tensorrt-rtx" and chosen.gpu == PORTABLE
    assert (
        "compute capability 8.0" in chosen.reason and "`tensorrt` was not taken: there is no" in chosen.reason
    )


def test_a_portable_engine_covers_newer_gpus_and_one_for_a_gpu_covers_that_one() -> None:
    assert covers("8.0+", "8.0") and covers("8.0+", "12.0") and not covers("8.0+", "7.5")
    assert covers("9.0", "9.0") and not covers("9.0", "9.1")


@pytest.mark.gpu
@pytest.mark.slow
def test_an_engine_answers_as_its_graph_does(halved: Path, tmp_path: Path) -> None:
    from storyv_lite.export.verify import compare
    from storyv_lite.runtime.backends.ort import OrtBackend
    from storyv_lite.runtime.backends.trt import TrtBackend

    folder = copy(halved, tmp_path / "whole")
    builder = choose_builder()
    add_engines(folder, builder)
    bundle, backend = Bundle.open(folder), TrtBackend(builder.name)
    dims = bundle.model.dimensions
    random = np.random.default_rng(0)
    sample = random.standard_normal((2, dims.latent_channels, dims.latent_size, dims.latent_size))
    states = random.standard_normal((2, dims.text_tokens, dims.cross_attention_dim)).astype(np.float32)
    feeds: dict[Component, dict[str, Any]] = {
        Component.UNET: {
            "sample": sample.astype(np.float32),
            "timestep": np.array([500]),
            "encoder_hidden_states": states,
        },
        DECODER: {"latents": sample.astype(np.float32)},
    }
    for component, feed in feeds.items():
        session = backend.open(bundle, component)
        for rows in (2, 1):  # both sizes of the profile, in one context
            part = {name: a if name == "timestep" else a[:rows] for name, a in feed.items()}
            (wanted,) = OrtBackend("cpu").open(bundle, component).run(part).values()
            (found,) = session.run(part).values()
            assert compare(found, wanted).snr_db > 35
        session.close()


def _key(folder: Path, builder: Builder) -> Any:
    return make_key(Bundle.open(folder).variant(DECODER), builder.name, builder.version, builder.gpu)


def _store(folder: Path, scheme: str) -> None:
    """Replace the decoder by one convolution stored by this scheme: what builders say of it, in a moment."""
    weight = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["latents", "w"], ["image"], name="/conv", pads=(1, 1, 1, 1))]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 32, 8, 8])
        for name in ("latents", "image")
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    chosen = SCHEMES[scheme][DECODER]
    model = quantize(model, chosen, {"latents": (-2.0, 3.0), "image": (-2.0, 3.0)}).model
    put(folder, DECODER, chosen.name, halve(model) if chosen.half else model)


def put(folder: Path, component: Component, scheme: str, model: onnx.ModelProto) -> None:
    """Make this graph the only variant of a component."""
    save_graph(model, folder / component)
    manifest = json.loads((folder / "manifest.json").read_text())
    part = part_entry(folder, f"{component}/{GRAPH}", f"{component}/{DATA}")
    manifest["components"][component]["variants"] = [variant_entry(Variant(scheme, "onnx", (part,), {}))]
    write_manifest(folder, {key: value for key, value in manifest.items() if key != "schema"})
