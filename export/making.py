"""The hidden folder beside a bundle in which that is made, and how the finished one gets its name.

Knows folders, renames and who may write; not what a bundle is made of. At any moment there is a whole bundle
under the name, the old or the new one, or none where there was none; a kill between two renames is mended
by the next export to the same name.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storyv_lite.bundle import refuse_taken
from storyv_lite.errors import OutputError
from storyv_lite.runtime.disk import locked

OLD = "old"  # of a bundle that is being replaced
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def making(out: Path, kind: str, force: bool, keep: bool) -> Iterator[Path]:
    """The folder `.NAME.kind` beside `out`, for this process alone.

    `keep` leaves what is in it to the next export when this one fails; else it begins and ends empty.

    Raises `OutputError` when `out` is taken (unless `force`), when another process makes a bundle of that
    name in the same way, and when the disk takes no more or may not be written.
    """
    if Path.cwd().is_relative_to(os.path.abspath(out)):
        raise OutputError(f"`{out}` is the folder you are in, or above it", "name a new folder with `-o`")
    work = out.with_name(f".{out.name}.{kind}")
    try:
        if work.is_dir():
            with locked(work):
                _settle(work, out)
        refuse_taken(out, force)
        work.mkdir(parents=True, exist_ok=True)
        with locked(work):
            if not keep:
                clear(work)
            try:
                yield work
            finally:
                _settle(work, out)
                if not keep:
                    shutil.rmtree(work, ignore_errors=True)
    except OSError as fault:
        if fault.errno in _NO_ROOM:
            raise OutputError(
                f"the disk takes no more of `{out}`: {fault}", "make room, and give the same command again"
            ) from fault
        if fault.errno in _NO_RIGHT:
            raise OutputError(
                f"`{out}` cannot be written: {fault}", "name another folder with `-o`"
            ) from fault
        raise


def publish(work: Path, out: Path, force: bool) -> None:
    """Give the finished bundle, `bundle` in `work`, its name, and remove `work`.

    Raises `OutputError` when something that may not be replaced has got the name meanwhile.
    """
    refuse_taken(out, force)
    if out.exists():
        out.rename(work / OLD)
    (work / "bundle").rename(out)
    shutil.rmtree(work, ignore_errors=True)


def clear(work: Path) -> None:
    """Remove what is in the folder, not the folder: a lock may lie on it."""
    for entry in work.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _settle(work: Path, out: Path) -> None:
    """Give a bundle that was moved away its name back, or remove it where another has the name by now."""
    if not (work / OLD).exists():
        return
    if not out.exists():
        (work / OLD).rename(out)
    elif (work / OLD).is_symlink():
        (work / OLD).unlink()
    else:
        shutil.rmtree(work / OLD)
