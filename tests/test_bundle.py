"""The bundle: what is read back, and everything that is refused before it is used."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from storyv_lite import bundle as bundles
from storyv_lite.bundle import (
    Bundle,
    component_entry,
    file_entry,
    find_bundle,
    part_entry,
    refuse_taken,
    write_manifest,
)
from storyv_lite.components import Component, Dimensions, signature
from storyv_lite.errors import BundleError, OutputError
from storyv_lite.manifest import Variant

DIMENSIONS = Dimensions(32, 4, 8, 16, 32, 32, 104, 64, 2, 2, 32, 128, 4, 2)


def write_bundle(folder: Path) -> Path:
    """A bundle whose files hold text: true to the format, of no use for drawing."""
    for name in (
        "unet/model.onnx",
        "unet/model.onnx.data",
        "words.json",
        "text.json",
        "story.json",
        "milo.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"words": ["fox", name]}))
    part = part_entry(folder, "unet/model.onnx", "unet/model.onnx.data")
    unet = component_entry(signature(Component.UNET, DIMENSIONS), (Variant("int8", "onnx", (part,), {}),))
    milo = {"name": "milo", "kind": "fox", "pronoun": "he", "description": "a fox", "aliases": ["the fox"]}
    manifest = {
        "name": "little",
        "model": {
            "dimensions": DIMENSIONS.as_dict(),
            "bos_token_id": 2,
            "prediction_type": "v_prediction",
            "scheduler": {"num_train_timesteps": 1000},
            "sampler": {
                "name": "ddim",
                "num_inference_steps": 4,
                "guidance_scale": 3,
                "timestep_spacing": "trailing",
            },
            "merge_step": {"reference": -1, "named": -1},
            "first_frame": "language_model",
            "context": {"tokens": 128, "frames": 8},
        },
        "components": {"unet": unet},
        "tokenizers": {
            "text_encoder": asdict(file_entry(folder, "text.json")),
            "language_model": asdict(file_entry(folder, "story.json")),
        },
        "characters": [{**milo, "portrait": asdict(file_entry(folder, "milo.png"))}],
        "vocabulary": asdict(file_entry(folder, "words.json")),
        "provenance": {"command": "tests"},
    }
    write_manifest(folder, manifest)
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the manifest in place."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def part(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["components"]["unet"]["variants"][0]["parts"][0]
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundles" / "little")


def test_what_was_written_is_read_back(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.name == "little"
    assert bundle.model.dimensions == DIMENSIONS
    assert bundle.model.sampler.num_inference_steps == 4
    assert bundle.variant(Component.UNET).parts[0].data == "unet/model.onnx.data"
    assert bundle.characters[0].aliases == ("the fox",)
    assert bundle.vocabulary["words"] == ("fox", "words.json")
    assert bundle.tokenizer("text_encoder") == folder / "text.json"
    assert bundle.total_bytes == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_equal_contents_give_equal_manifests(folder: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again")
    assert (again / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert Bundle.open(again).sha256 == Bundle.open(folder).sha256


@pytest.mark.parametrize(
    "name", ["unet/model.onnx", "unet/model.onnx.data", "words.json", "text.json", "story.json", "milo.png"]
)
def test_one_flipped_byte_anywhere_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=Path(name).name):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx.data", "words.json", "milo.png"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{Path(name).name}` is missing"):
        Bundle.open(folder)


def test_a_file_that_grew_is_refused(folder: Path) -> None:
    with (folder / "words.json").open("a") as stream:
        stream.write(" ")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "unet/../../secret",
        "/etc/passwd",
        "..",
        "C:/secret",
        "C:secret",
        "..\\secret",
        "//host/x",
        "",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(folder: Path, path: str) -> None:
    (folder.parent / "secret").write_text("secret")
    change(folder, lambda manifest: part(manifest).update(file=path))
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(folder)


@pytest.mark.parametrize("where", ["data", "vocabulary", "tokenizer", "portrait"])
def test_every_kind_of_path_is_checked(folder: Path, where: str) -> None:
    def escape(manifest: dict[str, Any]) -> None:
        entries = {
            "data": part(manifest),
            "vocabulary": manifest["vocabulary"],
            "tokenizer": manifest["tokenizers"]["text_encoder"],
            "portrait": manifest["characters"][0]["portrait"],
        }
        entries[where]["data" if where == "data" else "file"] = "../secret"

    change(folder, escape)
    with pytest.raises(BundleError, match="leaves the bundle"):
        Bundle.open(folder, verify=False)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_links_are_refused_even_when_they_stay_inside(folder: Path) -> None:
    shutil.move(folder / "words.json", folder / "other.json")
    (folder / "words.json").symlink_to("other.json")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(folder)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs links")
def test_a_linked_folder_inside_is_refused(folder: Path) -> None:
    shutil.move(folder / "unet", folder.parent / "elsewhere")
    (folder / "unet").symlink_to(folder.parent / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(folder)


def test_a_newer_schema_is_refused_with_the_way_out(folder: Path) -> None:
    change(folder, lambda manifest: manifest.update(schema=2))
    with pytest.raises(BundleError, match="schema 2; this version reads up to 1") as caught:
        Bundle.open(folder)
    assert "pip install --upgrade" in caught.value.hint


def test_an_older_schema_is_refused_with_the_way_out(folder: Path) -> None:
    change(folder, lambda manifest: manifest.update(schema=0))
    with pytest.raises(BundleError, match="schema 0, of an older version; 1 is needed") as caught:
        Bundle.open(folder)
    assert "storyv-lite export" in caught.value.hint


@pytest.mark.parametrize("schema", [None, "1", True, 1.0])
def test_a_schema_that_is_no_number_is_refused(folder: Path, schema: object) -> None:
    change(folder, lambda manifest: manifest.update(schema=schema))
    with pytest.raises(BundleError, match="has no schema version"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"', "\x00", "[" * 100_000])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match="manifest.json"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda m: m.pop("model"),
        lambda m: m["model"].pop("dimensions"),
        lambda m: m["model"]["dimensions"].pop("hidden_size"),
        lambda m: m["model"]["dimensions"].update(hidden_size="64"),
        lambda m: m["model"]["sampler"].update(guidance_scale="high"),
        lambda m: m["model"].update(first_frame="nobody"),
        lambda m: m["model"].update(bos_token_id=104),
        lambda m: m["components"].update(heart={"variants": []}),
        lambda m: m["components"].update(unet=[]),
        lambda m: m.update(characters=None),
        lambda m: m.update(vocabulary="words.json"),
        lambda m: part(m).update(file=7),
    ],
)
def test_a_malformed_manifest_is_one_clear_error(
    folder: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    change(folder, edit)
    with pytest.raises(BundleError, match="manifest.json"):
        Bundle.open(folder)


@pytest.mark.parametrize("content", ["[]", "{", '{"words": 3}', "[" * 100_000])
def test_a_vocabulary_that_is_none_is_one_clear_error(folder: Path, content: str) -> None:
    (folder / "words.json").write_text(content)
    change(folder, lambda manifest: manifest.update(vocabulary=asdict(file_entry(folder, "words.json"))))
    with pytest.raises(BundleError, match=r"words\.json` is no vocabulary"):
        _ = Bundle.open(folder).vocabulary


def test_a_component_that_is_not_there_is_named_with_what_is(folder: Path) -> None:
    bundle = Bundle.open(folder)
    with pytest.raises(BundleError, match="nothing for `mapper`"):
        bundle.variant(Component.MAPPER)
    with pytest.raises(BundleError, match="`int8` for onnx for `unet`; one for `torch`"):
        bundle.variant(Component.UNET, "torch")


def test_the_bundle_asked_for_is_found_by_path_and_by_name(folder: Path) -> None:
    here = folder.parents[1]
    assert find_bundle(folder, here) == (folder, "asked for")
    assert find_bundle("little", here)[0] == folder
    with pytest.raises(BundleError, match="`large` is no bundle") as caught:
        find_bundle("large", here)
    assert caught.value.hint.endswith("or one of these: little, toon")


def test_force_replaces_a_bundle_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    refuse_taken(tmp_path / "new", force=False)
    refuse_taken(folder, force=True)
    with pytest.raises(OutputError, match="exists"):
        refuse_taken(folder, force=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    for other in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(OutputError, match="is no bundle"):
            refuse_taken(other, force=True)


def test_without_a_wish_the_newest_of_the_folder_is_taken(folder: Path) -> None:
    newer = write_bundle(folder.parent / "another")
    os.utime(newer / "manifest.json", (4e9, 4e9))
    found, reason = find_bundle(None, folder.parents[1])
    assert found == newer
    assert "newest" in reason


def test_with_no_bundle_at_all_the_error_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "PACKAGED", tmp_path / "nowhere")
    with pytest.raises(BundleError) as caught:
        find_bundle(None, tmp_path)
    assert "storyv-lite export" in caught.value.hint


def test_the_packaged_bundle_comes_last(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "PACKAGED", folder)
    (tmp_path / "empty").mkdir()
    assert find_bundle(None, tmp_path / "empty") == (folder, "the one that ships with storyv-lite")
