"""The reference pages of the two formats name every field that is really written."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
OPAQUE = {
    "scheduler",
    "versions",
    "signature",
    "train_config",
    "stages",
}  # foreign words or open lists


def keys(value: Any, opaque: set[str]) -> Iterator[str]:
    """Every key of nested objects, but not what lies below an opaque one."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield key
            if key not in opaque:
                yield from keys(below, opaque)
    elif isinstance(value, list):
        for item in value:
            yield from keys(item, opaque)


def unnamed(page: str, content: Mapping[str, Any], opaque: set[str] = OPAQUE) -> set[str]:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    return {key for key in keys(content, opaque) if f"`{key}`" not in text and f'"{key}"' not in text}


def test_the_page_of_the_bundle_names_every_key_of_a_manifest(tiny_bundle_int8: Path) -> None:
    manifest = json.loads((tiny_bundle_int8 / "manifest.json").read_text())
    assert unnamed("bundle.md", manifest) == set()


def test_the_page_of_the_checkpoint_names_every_key_and_every_file_of_one(tmp_path: Path) -> None:
    from storyv_lite.presets import load_config
    from storyv_lite.train import recipes

    recipes.describe(load_config("micro"), tmp_path)
    assert unnamed("checkpoint.md", json.loads((tmp_path / "checkpoint.json").read_text())) <= {
        *load_config("micro").model.dimensions().as_dict(),
        *("name", "num_inference_steps", "guidance_scale", "timestep_spacing", "reference", "named"),
    }, "what is copied into the bundle is described there"
    story = json.loads((tmp_path / "calibration.jsonl").read_text().splitlines()[0])
    assert unnamed("checkpoint.md", story) == set()
    text = (REFERENCE / "checkpoint.md").read_text(encoding="utf-8")
    assert all(path.name in text for path in tmp_path.iterdir())


def test_a_key_that_a_page_does_not_name_would_be_noticed() -> None:
    assert unnamed("bundle.md", {"name": "a", "model": [{"colour_of_the_sky": 1}]}) == {"colour_of_the_sky"}
