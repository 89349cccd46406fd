"""Options that several commands share, how an output folder is chosen, and a command line written down."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.errors import OutputError

BundleOption = Annotated[
    str,
    typer.Option(
        "--bundle",
        metavar="BUNDLE",
        help="Bundle folder or name [default: newest in ./bundles, else the packaged one].",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.")]
ProviderOption = Annotated[
    str, typer.Option("--provider", metavar="PROVIDER", help="auto, cpu, cuda, tensorrt or tensorrt-rtx.")
]
RamOption = Annotated[
    str,
    typer.Option("--ram", metavar="SIZE", help="Memory that may be used, like 8GB [default: no limit]."),
]
VramOption = Annotated[
    str,
    typer.Option("--vram", metavar="SIZE", help="GPU memory that may be used [default: no limit]."),
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", metavar="N", help="Denoising steps [default: the bundle's].")
]
GuidanceOption = Annotated[
    float | None,
    typer.Option("--guidance", metavar="SCALE", help="Guidance scale [default: the bundle's]."),
]
StrictBudgetOption = Annotated[
    bool, typer.Option("--strict-budget", help="Fail when more memory was used than was planned.")
]
ContextSizeOption = Annotated[
    str,
    typer.Option(
        "--context-size",
        metavar="SIZE",
        help="What the language model may hold of a story, in tokens (2000) or memory (512MiB); beyond it "
        "earlier frames are left out [default: the bundle's limit].",
    ),
]
KvCacheOption = Annotated[
    str,
    typer.Option(
        "--kv-cache",
        metavar="WIDTH",
        help="What that is stored in: fp32, fp16 or int8; narrower is smaller and less exact "
        "[default: as computed].",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write although something is there.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON in the last line of stdout.")
]


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
        raise OutputError(f"there is no folder `{file.parent}`", f"mkdir -p {shlex.quote(str(file.parent))}")
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


def command_line(command: str, options: Mapping[str, object]) -> str:
    """The command that measures this again, for a report."""
    words = ["storyv-lite", command]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                words.append(f"--{name}")
            elif one not in (None, False):
                words += [f"--{name}", str(one)]
    return shlex.join(words)
