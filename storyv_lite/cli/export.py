"""`storyv-lite export`: a checkpoint becomes a bundle that draws without a training framework."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.bundle import MANIFEST, Bundle
from storyv_lite.cli.console import note, progress, say, say_json
from storyv_lite.cli.options import ForceOption, JsonOption
from storyv_lite.engine import refuse, unreadable
from storyv_lite.errors import ConfigError
from storyv_lite.memory import format_bytes
from storyv_lite.optional import require
from storyv_lite.quantization import DRAWING, plan

if TYPE_CHECKING:
    from storyv_lite.export.engines import Builder, Engine

TARGETS = ("onnx", "tensorrt", "tensorrt-rtx")


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Checkpoint folder [default: the newest]; for engines also a bundle, which then gets them.",
        ),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, calibrated [default].")] = False,
    int4: Annotated[
        bool, typer.Option("--int4", help="4 bits where it reads, 8 bits where it draws.")
    ] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="32 bits, as trained.")] = False,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme", metavar="PART=NAME,...", help="For single parts, such as `unet=int4,llm=int8`."
        ),
    ] = "",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="onnx, or tensorrt: engines of what draws as well; tensorrt-rtx: by that builder.",
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="Folder to write [default: bundles/PRESET-SCHEME]."
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle."""
    asked = [name for name, wanted in (("int8", int8), ("int4", int4), ("fp32", fp32)) if wanted] or ["int8"]
    if len(asked) > 1:
        raise ConfigError(f"`--{asked[0]}` and `--{asked[1]}` exclude each other", "give one of them")
    if target not in TARGETS:
        raise ConfigError(f"`{target}` is no target; there are {', '.join(TARGETS)}", "give one of them")
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        if target == "onnx" or int8 or int4 or fp32 or scheme or out:
            raise ConfigError(
                f"`{checkpoint}` is a bundle: it can get engines, and nothing else can be made of it",
                hint=f"storyv-lite export {checkpoint} --target tensorrt",
            )
        _add_engines(checkpoint, target, force, as_json)
        return
    # a builder reads no graph of the presets' 8 and 4 bits
    readable = "" if target == "onnx" or fp32 else "fp16"
    schemes = ",".join(filter(None, (asked[0], readable, scheme)))
    chosen = plan(schemes)  # a misspelt word is told before anything is loaded
    if target != "onnx":
        for component in DRAWING:
            if reason := unreadable(chosen[component]):
                raise refuse(component, chosen[component].name, reason)
    for module in ("torch", "transformers", "diffusers", "onnx", "onnxscript"):
        require(module, "export")
    from storyv_lite.export import assemble
    from storyv_lite.export.engines import add_engines

    builder = None if target == "onnx" else _builder(target)
    if checkpoint is None:
        checkpoint = assemble.newest_checkpoint(Path.cwd())
        here = checkpoint.is_relative_to(Path.cwd() / "checkpoints")
        note(f"checkpoint: {checkpoint} ({'the newest in ./checkpoints' if here else 'the one that ships'})")
    suffix = "" if builder is None else f"-{target}"
    name = asked[0] if not scheme else f"{asked[0]}-{scheme.replace('=', '-').replace(',', '-')}"
    folder = out or Path("bundles") / f"{checkpoint.name}-{name}{suffix}"
    engines: list[Engine] = []
    with progress() as show:

        def complete(written: Path) -> None:
            if builder is not None:
                engines.extend(add_engines(written, builder, folder, force, show))

        assemble.export_checkpoint(checkpoint, folder, schemes, force, show, complete)
    bundle = Bundle.open(folder)
    say(f"wrote {folder} ({format_bytes(bundle.total_bytes)}, {schemes})")
    _say_engines(engines)
    provider = f" --provider {builder.name}" if builder else ""
    say(f"next: storyv-lite render STORY.txt{f' --bundle {folder}' if out else ''}{provider}")
    if as_json:
        parity = {name: dict(variants[0].parity) for name, variants in bundle.components.items()}
        sizes = {"bytes": bundle.total_bytes, "scheme": schemes, "engines": _records(engines)}
        say_json({"bundle": str(folder), "checkpoint": str(checkpoint), **sizes, "parity": parity})


def _add_engines(folder: Path, target: str, force: bool, as_json: bool) -> None:
    """Engines for a bundle that is there, from its own graphs; nothing else of it changes."""
    from storyv_lite.export.engines import add_engines

    builder = _builder(target)
    with progress() as show:
        engines = add_engines(folder, builder, None, force, show)
    _say_engines(engines)
    say(f"next: storyv-lite render STORY.txt --bundle {folder} --provider {builder.name}")
    if as_json:
        say_json(
            {"bundle": str(folder), "bytes": Bundle.open(folder).total_bytes, "engines": _records(engines)}
        )


def _builder(target: str) -> "Builder":
    from storyv_lite.export.engines import choose_builder

    builder = choose_builder(target)
    note(f"engines: by {builder.name} {builder.version}, {builder.reason}")
    return builder


def _say_engines(engines: Sequence["Engine"]) -> None:
    for engine in engines:
        took = f"built in {engine.seconds:.1f} s" if engine.seconds else "used again, its key is the same"
        say(f"engine of {engine.component}: {engine.file}, {format_bytes(engine.bytes)}, {took}")


def _records(engines: Sequence["Engine"]) -> list[dict[str, object]]:
    return [asdict(engine) for engine in engines]
