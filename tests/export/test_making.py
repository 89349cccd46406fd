"""Where a bundle is made: nothing half-made under its name, whatever ends an export and whenever."""

import errno
import os
from pathlib import Path

import pytest

from storyv_lite.errors import OutputError
from storyv_lite.export.making import OLD, making, publish


def bundle(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(text)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("keep", [False, True])
def test_a_bundle_gets_its_name_and_nothing_is_left_beside_it(tmp_path: Path, keep: bool) -> None:
    out = bundle(tmp_path / "out", "old")
    with making(out, "partial", force=True, keep=keep) as work:
        bundle(work / "bundle", "new")
        publish(work, out, force=True)
    assert (out / "manifest.json").read_text() == "new" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("keep", [False, True])
def test_an_export_that_fails_leaves_the_old_bundle_and_what_is_of_use(tmp_path: Path, keep: bool) -> None:
    out = bundle(tmp_path / "out", "old")
    with pytest.raises(KeyboardInterrupt), making(out, "partial", force=True, keep=keep) as work:
        bundle(work / "bundle", "new")
        raise KeyboardInterrupt
    assert (out / "manifest.json").read_text() == "old"
    assert names(tmp_path) == ([".out.partial", "out"] if keep else ["out"])


def test_a_kill_between_two_renames_is_mended_by_the_next_export(tmp_path: Path) -> None:
    bundle(tmp_path / ".out.partial" / OLD, "old")
    with pytest.raises(OutputError, match="exists"), making(tmp_path / "out", "partial", False, False):
        pass
    assert (tmp_path / "out" / "manifest.json").read_text() == "old"


def test_a_kill_behind_the_last_rename_does_not_stop_the_next_export(tmp_path: Path) -> None:
    out = bundle(tmp_path / "out", "new")
    bundle(tmp_path / ".out.partial" / OLD, "old")
    with making(out, "partial", force=True, keep=True) as work:
        bundle(work / "bundle", "newer")
        publish(work, out, force=True)
    assert (out / "manifest.json").read_text() == "newer" and names(tmp_path) == ["out"]


def test_a_name_that_was_taken_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="is no bundle"), making(out, "partial", True, False) as work:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        bundle(work / "bundle", "new")
        publish(work, out, force=True)
    assert names(out) == ["mine.txt"] and names(tmp_path) == ["out"]


def test_a_name_has_one_maker(tmp_path: Path) -> None:
    with (
        making(tmp_path / "out", "partial", False, False),
        pytest.raises(OutputError, match="another process is writing into"),
        making(tmp_path / "out", "partial", False, False),
    ):
        pass


def test_a_link_that_leads_nowhere_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(OutputError, match="exists"), making(tmp_path / "out", "partial", False, False):
        pass


@pytest.mark.parametrize("out", [".", "..", "inner/.."])
def test_the_folder_one_is_in_is_no_place_for_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with (
        pytest.raises(OutputError, match="is the folder you are in"),
        making(Path(out), "partial", True, False),
    ):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit of this kind")
def test_a_disk_that_fills_up_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError) as fault, making(tmp_path / "out", "partial", False, False) as work:
            (work / "graph.onnx").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the disk takes no more of" in fault.value.message and not names(tmp_path)
    assert isinstance(fault.value.__cause__, OSError) and fault.value.__cause__.errno == errno.EFBIG
