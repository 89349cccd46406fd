"""Ranges of activations in a file: taken by parts, used by exports in little memory, refused elsewhere."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storyv_lite.bundle import Bundle
from storyv_lite.checkpoint import checkpoint_hash
from storyv_lite.components import Component, Dimensions
from storyv_lite.errors import ConfigError, OutputError
from storyv_lite.export import stored_ranges
from storyv_lite.export.calibrate import STORIES, Feed, calibrate, read_stories
from storyv_lite.export.ranges import ranges_by_parts
from storyv_lite.export.stored_ranges import StoredRanges, load_ranges, save_ranges, take_ranges
from storyv_lite.export.stream import stream_component
from storyv_lite.export.streamed import stream_checkpoint
from storyv_lite.quantization import DRAWING, SCHEMES, plan
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.story import Caption, Story

Refused = Callable[..., str]
UNET = Component.UNET


@pytest.fixture(scope="module")
def taken(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> StoredRanges:
    """Ranges of the tiny checkpoint from one story, its parts as small as they get."""
    work = tmp_path_factory.mktemp("taken") / "work"
    found = take_ranges(tiny_checkpoint, tiny_bundle, work, stories=1, part_bytes=100_000)
    assert not work.exists()
    return found


@pytest.fixture
def file(taken: StoredRanges, tmp_path: Path) -> Path:
    save_ranges(tmp_path / "ranges.json", taken)
    return tmp_path / "ranges.json"


def dimensions(bundle: Path) -> Dimensions:
    return Bundle.open(bundle, verify=False).model.dimensions


def test_a_file_gives_back_what_was_taken(file: Path, taken: StoredRanges, tiny_checkpoint: Path) -> None:
    assert load_ranges(file) == taken
    assert taken.checkpoint_sha256 == checkpoint_hash(tiny_checkpoint)
    assert set(taken.components) == set(DRAWING) and all(taken.components.values())


def test_parts_in_turn_give_the_ranges_of_the_whole(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    stories = read_stories(tiny_checkpoint)[:1]
    feeds = calibrate(tiny_bundle, stories, lambda text: None, [UNET], kept=())[UNET][:2]

    def ranges(part_bytes: int) -> dict[str, tuple[float, float]]:
        given = (UNET, tiny_checkpoint, dimensions(tiny_bundle), SCHEMES["int8"][UNET], feeds)
        return dict(ranges_by_parts(*given, tmp_path / "work", part_bytes))

    parts, whole = ranges(100_000), ranges(2**40)
    assert parts.keys() == whole.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_only_what_is_wanted_is_remembered(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    stories = read_stories(tiny_checkpoint)[:1]
    heard = calibrate(tiny_bundle, stories, lambda text: None, DRAWING)
    everything = calibrate(tiny_bundle, stories, lambda text: None)
    assert set(heard) == set(DRAWING) and set(everything) > set(DRAWING)
    for component in DRAWING:
        assert all(map(same, heard[component], everything[component]))


def same(one: Feed, other: Feed) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in other)


def test_the_three_commands_make_a_bundle_in_8_bits_that_draws(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    done: Callable[..., str],
    run: Callable[..., tuple[int, str, str]],
) -> None:
    monkeypatch.chdir(tmp_path)
    done("export", tiny_checkpoint, "--low-memory", "--fp16")
    code, told, err = run("ranges", tiny_checkpoint, "--stories", "1")
    assert code == 0, err
    name = f"{tiny_checkpoint.name}-ranges.json"
    assert f"next: storyv-lite export {tiny_checkpoint} --low-memory --int8 --ranges {name}" in told
    done("export", tiny_checkpoint, "--low-memory", "--int8", "--ranges", name, "-o", "small")
    bundle = Bundle.open(tmp_path / "small")
    assert {bundle.variant(component).scheme for component in DRAWING} == {"int8"}
    pipeline = StoryPipeline(bundle, open_backend("cpu", threads=1))
    assert len(list(pipeline.draw(Story((Caption("Milo is waving in the meadow."),)), seed=0))) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["bundles", "small", name]


def test_stored_in_8_bits_what_draws_stays_within_the_limit(
    taken: StoredRanges, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    from storyv_lite.export.verify import LIMITS, compare

    dims, scheme = dimensions(tiny_bundle), SCHEMES["int8"][UNET]
    given = (UNET, tiny_checkpoint, dims, scheme, tmp_path / "bundle", tmp_path / "records", None)
    stream_component(*given, taken.components[UNET])
    feed = calibrate(tiny_bundle, read_stories(tiny_checkpoint)[:1], lambda text: None, [UNET])[UNET][0]
    answers = [answer(folder / UNET, feed) for folder in (tmp_path / "bundle", tiny_bundle)]
    assert compare(*answers).snr_db > LIMITS["int8"].snr_db


def test_ranges_of_an_unfinished_checkpoint_are_refused(
    tiny_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "checkpoint.json").write_text('{"schema": 1}')
    assert "lacks `dimensions`" in refused(4, "ranges", tmp_path / "begun", "--bundle", tiny_bundle)


def answer(folder: Path, feed: Feed) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, dict(feed))[0]


def test_a_file_that_is_missing_or_holds_something_else_is_told_with_the_command_that_helps(
    tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    command = ("export", tiny_checkpoint, "--low-memory", "--int8", "-o", tmp_path / "out", "--ranges")
    missing = tmp_path / "none.json"
    told = refused(4, *command, missing)
    assert f"`{missing}` is missing" in told and "storyv-lite ranges" in told
    for content in ("", "[]", '{"schema": 1}', '{"schema": 2}', json.dumps({"schema": 1, "components": 3})):
        (tmp_path / "odd.json").write_text(content)
        assert "holds no ranges of activations" in refused(4, *command, tmp_path / "odd.json")
    assert not (tmp_path / "out").exists()


def test_ranges_of_another_checkpoint_size_or_component_are_refused_before_anything_is_written(
    file: Path, taken: StoredRanges, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def message(ranges: StoredRanges) -> str:
        save_ranges(file, ranges)
        with pytest.raises(ConfigError) as fault:
            stream_checkpoint(tiny_checkpoint, tmp_path / "out", "int8", ranges=file)
        assert not list(tmp_path.rglob("*.onnx"))
        return fault.value.message

    assert "holds ranges of the checkpoint 0123" in message(replace(taken, checkpoint_sha256="0123"))
    size = taken.latent_size
    assert f"ranges of 7x7 latents, `{tiny_checkpoint}` draws {size}x{size}" in message(
        replace(taken, latent_size=7)
    )
    assert "has no ranges of `vae_decoder`" in message(
        replace(taken, components={UNET: taken.components[UNET]})
    )


def test_the_command_that_takes_ranges_again_can_be_pasted(
    taken: StoredRanges, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    spaced = tmp_path / "my ranges.json"
    save_ranges(spaced, replace(taken, latent_size=7))
    with pytest.raises(ConfigError) as fault:
        stream_checkpoint(tiny_checkpoint, tmp_path / "out", "int8", ranges=spaced)
    command = ["storyv-lite", "ranges", str(tiny_checkpoint), "-o", str(spaced), "--force"]
    assert fault.value.hint is not None and shlex.split(fault.value.hint.split(": ", 1)[1]) == command


def test_ranges_of_another_graph_name_a_tensor_that_has_none(
    taken: StoredRanges, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    dims, scheme = dimensions(tiny_bundle), SCHEMES["int8"][UNET]
    given = (UNET, tiny_checkpoint, dims, scheme, tmp_path / "bundle", tmp_path / "records", None)
    kept = dict(list(taken.components[UNET].items())[1:])
    with pytest.raises(ConfigError, match="another graph of `unet`: 1 of .* tensors have none"):
        stream_component(*given, kept)
    assert not list(tmp_path.rglob("*.onnx"))


@pytest.mark.parametrize(
    ("scheme", "given", "says"),
    [
        (
            "int8",
            False,
            "`unet`, `vae_decoder` as int8: activations are rounded, and their ranges are not known",
        ),
        ("fp16", True, "no part of this export rounds activations"),
        ("int8,unet=int8-symmetric", True, "`unet` as int8-symmetric cannot be written one tensor at a time"),
    ],
)
def test_schemes_and_ranges_that_do_not_fit_are_refused(
    scheme: str, given: bool, says: str, file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=says):
        stream_checkpoint(tiny_checkpoint, tmp_path / "out", scheme, ranges=file if given else None)


def test_ranges_are_for_low_memory_alone(
    file: Path, tiny_checkpoint: Path, tmp_path: Path, refused: Refused
) -> None:
    told = refused(2, "export", tiny_checkpoint, "--ranges", file, "-o", tmp_path / "out")
    assert "`--ranges` goes with `--low-memory`" in told


def test_a_bundle_of_another_checkpoint_draws_no_ranges(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, refused: Refused
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    (other / "vocabulary.json").write_text((other / "vocabulary.json").read_text() + " ")
    told = refused(2, "ranges", other, "--bundle", tiny_bundle, "-o", tmp_path / "ranges.json")
    assert f"`{tiny_bundle}` was not made of `{other}`" in told and "--low-memory --fp16" in told


def test_a_file_that_is_there_is_kept(tiny_checkpoint: Path, file: Path, refused: Refused) -> None:
    before = file.read_bytes()
    assert "exists" in refused(2, "ranges", tiny_checkpoint, "-o", file)
    assert file.read_bytes() == before


def test_a_full_disk_is_told_and_no_half_file_is_left(
    taken: StoredRanges, tmp_path: Path, small_disk: Callable[[int], Any]
) -> None:
    with pytest.raises(OutputError, match="cannot be written"), small_disk(100):
        save_ranges(tmp_path / "ranges.json", taken)
    assert not list(tmp_path.iterdir())


def test_few_calls_of_a_component_are_kept(
    taken: StoredRanges, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    counts = []

    def counted(component: Component, *given: Any) -> dict[str, tuple[float, float]]:
        counts.append(len(given[3]))
        return {}

    monkeypatch.setattr(stored_ranges, "ranges_by_parts", counted)
    take_ranges(tiny_checkpoint, tiny_bundle, tmp_path / "work", stories=3)
    assert counts and max(counts) <= stored_ranges.CALLS


def test_as_many_stories_are_drawn_as_are_asked_for(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    told: list[str] = []
    stories = read_stories(tiny_checkpoint)[:1] * (STORIES + 1)
    calibrate(tiny_bundle, stories, told.append, [UNET])
    assert told[-1] == f"draw calibration story {STORIES + 1} of {STORIES + 1}"


def test_other_ranges_begin_an_export_anew(
    file: Path, taken: StoredRanges, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def killed(message: str) -> None:
        if message.startswith("vae_decoder"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_checkpoint(tiny_checkpoint, tmp_path / "out", "int8", progress=killed, ranges=file)
    wider = {name: (2 * low, 2 * high) for name, (low, high) in taken.components[UNET].items()}
    save_ranges(file, replace(taken, components={**taken.components, UNET: wider}))
    told: list[str] = []
    stream_checkpoint(tiny_checkpoint, tmp_path / "out", "int8", progress=told.append, ranges=file)
    assert "take up the export that was begun" not in told
    assert plan("int8")[UNET].name == "int8"
