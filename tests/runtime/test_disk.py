"""Files that are whole or not there, and folders with one writer."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from storyv_lite.errors import OutputError
from storyv_lite.runtime.disk import append_line, link_file, locked, write_file

SmallDisk = Callable[[int], AbstractContextManager[None]]
linux = pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")


def test_a_file_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        write_file(tmp_path / "frame.png", content)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("frame.png", b"second")]


@linux
def test_a_full_disk_tears_no_file_and_no_line(tmp_path: Path, small_disk: SmallDisk) -> None:
    write_file(tmp_path / "journal", b"one\n")
    with small_disk(10), pytest.raises(OSError):
        write_file(tmp_path / "frame.png", bytes(100))
    with small_disk(10), pytest.raises(OSError):
        append_line(tmp_path / "journal", b"a line of more than ten bytes\n")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("journal", b"one\n")]


def test_a_line_is_added(tmp_path: Path) -> None:
    write_file(tmp_path / "journal", b"one\n")
    append_line(tmp_path / "journal", b"two\n")
    assert (tmp_path / "journal").read_bytes() == b"one\ntwo\n"


def test_a_linked_file_is_left_as_it_is_when_the_other_is_replaced(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")
    link_file(tmp_path / "a", tmp_path / "b")
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")
    write_file(tmp_path / "b", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_has_one_writer_and_is_free_again_after_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(OutputError, match="another process"), locked(tmp_path):
            pass
    with locked(tmp_path):
        assert not list(tmp_path.iterdir()) or sys.platform == "win32"


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from storyv_lite.runtime.disk import locked\n"
    code += "with locked(Path(sys.argv[1])):\n print('locked', flush=True); sys.stdin.read()"
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline().strip() == b"locked"
    with pytest.raises(OutputError, match="another process"), locked(tmp_path):
        pass
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    with locked(tmp_path):
        pass
