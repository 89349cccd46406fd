"""Where a command may write, told before anything is drawn or measured for it.

Knows nothing of what will be written there.
"""

import shlex
from pathlib import Path

from storyv_lite.errors import OutputError


def free_folder(stem: str, parent: Path) -> Path:
    """`STEM-storyboard`, or with -2, -3, ... the first of these that does not exist in `parent`."""
    wanted = parent / f"{stem}-storyboard"
    number = 2
    while wanted.exists() or wanted.is_symlink():
        wanted = parent / f"{stem}-storyboard-{number}"
        number += 1
    return wanted


def make_folder(folder: Path, force: bool) -> None:
    """Create an output folder. Raises `OutputError` when it is a file, not writable, or holds something."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = holds_something(folder)
        _probe(folder)
    except (FileExistsError, NotADirectoryError) as fault:
        raise OutputError(
            f"`{folder}` is a file, and a folder is needed", "name another with `-o`"
        ) from fault
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise OutputError(
            f"`{folder}` cannot be written: {reason}", "name another folder with `-o`"
        ) from fault
    if taken and not force:
        raise OutputError(f"`{folder}` is not empty", "name another folder with `-o`, or give `--force`")


def holds_something(folder: Path) -> bool:
    """Whether a folder holds anything that a listing shows; what a kill leaves half-written is not shown."""
    return any(not file.name.startswith(".") for file in folder.iterdir())


def check_file(file: Path, force: bool) -> None:
    """Raise `OutputError` when a file to be written is there, is a folder, or cannot be written there."""
    if file.is_dir():
        raise OutputError(f"`{file}` is a folder, and a file is needed", "name another file")
    if file.exists() and not force:
        raise OutputError(f"`{file}` exists", "name another file, or give `--force`")
    if not file.parent.is_dir():
        raise OutputError(
            f"there is no folder `{file.parent}`, in which `{file.name}` is to be written",
            f"mkdir -p {shlex.quote(str(file.parent))}",
        )
    try:
        _probe(file.parent)
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise OutputError(f"`{file}` cannot be written: {reason}", "name another file") from fault


def _probe(folder: Path) -> None:
    """Raise `OSError` when no file can be written into `folder`."""
    probe = folder / ".storyv-lite-probe"
    probe.touch()
    probe.unlink()
