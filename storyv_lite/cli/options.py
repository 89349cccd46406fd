"""Options that several commands share, and a command line written down."""

import shlex
from collections.abc import Mapping
from typing import Annotated

import typer

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
SpellOutOption = Annotated[
    bool,
    typer.Option(
        "--spell-out",
        help='Tell finished frames with the names that "she" or "they" stood for, as the model itself writes '
        "them: long stories lose fewer characters.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write although something is there.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON in the last line of stdout.")
]


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
