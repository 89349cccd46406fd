"""Writing so that nothing torn is ever found under its name, and one writer per folder.

Knows bytes and folders, not what they mean. What a function has written survives a kill of the process and,
where the system can promise it, a loss of power.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storyv_lite.errors import OutputError


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is there complete or not at all. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    sync_folder(path.parent)


def append_line(path: Path, line: bytes) -> None:
    """Add one line, newline included, to a file that exists: whole or not at all. Raises `OSError`.

    A loss of power may still leave a torn one, so readers stop at the first line that makes no sense.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def link_file(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the system has no links. Raises `OSError`."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        write_file(target, source.read_bytes())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of an existing folder; the lock goes with its process, however that ends.

    Raises `OutputError` when another process (or thread) has it.
    """
    descriptor = os.open(*_lock_file(folder))
    try:
        try:
            _lock(descriptor)
        except OSError as fault:
            if fault.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            raise OutputError(
                f"another process is writing into `{folder}`", "wait until it has ended"
            ) from fault
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":
    import msvcrt

    def _lock_file(folder: Path) -> tuple[Path, int]:
        return folder / ".storyv-lite-lock", os.O_RDWR | os.O_CREAT | os.O_TEMPORARY  # goes when it is closed

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_file(folder: Path) -> tuple[Path, int]:
        return folder, os.O_RDONLY  # the folder itself: no file is left behind by a kill

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
