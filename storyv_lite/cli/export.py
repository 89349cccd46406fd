"""`storyv-lite export`: a checkpoint becomes a bundle that draws without a training framework."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from storyv_lite.bundle import MANIFEST, Bundle
from storyv_lite.checkpoint import train_command, unfinished
from storyv_lite.cli.console import note, progress, say, say_json, warn
from storyv_lite.cli.options import ForceOption, JsonOption
from storyv_lite.coverage import shares, summary
from storyv_lite.engine import refuse, unreadable
from storyv_lite.errors import ConfigError
from storyv_lite.memory import format_bytes, parse_bytes
from storyv_lite.optional import require_export
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
    fp16: Annotated[bool, typer.Option("--fp16", help="16 bits, computed in 32.")] = False,
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
    target_bytes: Annotated[
        str, typer.Option("--target-bytes", metavar="SIZE", help="With --int4: mixed widths, at most `20MB`.")
    ] = "",
    target_psnr: Annotated[
        float | None,
        typer.Option("--target-psnr", metavar="DB", help="With --int4: mixed widths, pictures this close."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FOLDER", help="Folder to write [default: bundles/PRESET-SCHEME]."
        ),
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            "--low-memory", help="One tensor at a time, no calibration; a killed export is taken up again."
        ),
    ] = False,
    ranges: Annotated[
        Path | None,
        typer.Option(
            "--ranges",
            metavar="FILE",
            help="With --low-memory: ranges of activations, which 8 bits of what draws need; `storyv-lite "
            "ranges` takes them.",
        ),
    ] = None,
    force: ForceOption = False,
    allow_degraded: Annotated[
        bool, typer.Option("--allow-degraded", help="Write although the parity gate fails.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle."""
    presets = {"int8": int8, "int4": int4, "fp16": fp16, "fp32": fp32}
    asked = [name for name, wanted in presets.items() if wanted] or ["int8"]
    if len(asked) > 1:
        raise ConfigError(f"`--{asked[0]}` and `--{asked[1]}` exclude each other", "give one of them")
    if target not in TARGETS:
        raise ConfigError(f"`{target}` is no target; there are {', '.join(TARGETS)}", "give one of them")
    aims = target_bytes or target_psnr is not None
    if checkpoint is not None and (checkpoint / MANIFEST).is_file():
        other = any(presets.values()) or scheme or aims or out or allow_degraded or low_memory or ranges
        if target == "onnx" or other:
            builder_name = "tensorrt" if target == "onnx" else target
            raise ConfigError(
                f"`{checkpoint}` is a bundle: it can get engines, and nothing else can be made of it",
                hint=f"storyv-lite export {shlex.quote(str(checkpoint))} --target {builder_name}",
            )
        _add_engines(checkpoint, target, force, as_json)
        return
    # a builder reads no graph of the presets' 8 and 4 bits
    readable = "" if target == "onnx" or fp32 else "half"
    schemes = ",".join(filter(None, (asked[0], readable, scheme)))
    chosen = plan(schemes)  # a misspelt word is told before anything is loaded
    if aims and asked[0] != "int4":
        raise ConfigError("a target chooses among narrow widths; it needs `--int4`", "add --int4")
    if target_bytes and target_psnr is not None:
        raise ConfigError("`--target-bytes` and `--target-psnr` exclude each other", "give one of them")
    most = parse_bytes(target_bytes) if target_bytes else None
    if target != "onnx":
        if aims:
            raise ConfigError(f"mixed widths cannot become engines for {target}", "leave `--target` out")
        for component in DRAWING:
            if reason := unreadable(chosen[component]):
                raise refuse(component, chosen[component].name, reason)
    require_export()
    from storyv_lite.export import assemble
    from storyv_lite.export.engines import add_engines
    from storyv_lite.export.mixed import Target, refuse_both
    from storyv_lite.export.streamed import refuse_unwritten, stream_checkpoint

    if aims:
        refuse_both(scheme)
    if low_memory:
        if target != "onnx" or aims or allow_degraded:
            raise ConfigError(
                "`--low-memory` goes with no other target, no chosen widths and no lost weights",
                "leave it out",
            )
        refuse_unwritten(chosen, ranges)
    elif ranges is not None:
        raise ConfigError(
            "`--ranges` goes with `--low-memory`; otherwise export takes its own", "add `--low-memory`"
        )
    builder = None if target == "onnx" else _builder(target)
    if checkpoint is None:
        checkpoint = assemble.newest_checkpoint(Path.cwd())
        here = checkpoint.is_relative_to(Path.cwd() / "checkpoints")
        note(f"checkpoint: {checkpoint} ({'the newest in ./checkpoints' if here else 'the one that ships'})")
    if stages := unfinished(checkpoint):
        goes_on = train_command(checkpoint, stages[0])
        warn(f"`{checkpoint}` is exported as it is, {', '.join(stages)} not finished; to go on: {goes_on}")
    suffix = "" if builder is None else f"-{target}"
    name = asked[0] if not scheme else f"{asked[0]}-{scheme.replace('=', '-').replace(',', '-')}"
    aim = None if most is None and target_psnr is None else Target(most, target_psnr)
    if aim is not None:
        name += f"-{target_bytes or f'{target_psnr:g}dB'}".replace(" ", "")
    folder = out or Path("bundles") / f"{checkpoint.resolve().name}-{name}{suffix}"
    engines: list[Engine] = []
    with progress() as show:

        def complete(written: Path) -> None:
            if builder is not None:
                engines.extend(add_engines(written, builder, folder, force, show))

        if low_memory:
            stream_checkpoint(checkpoint, folder, schemes, force, progress=show, ranges=ranges)
        else:
            assemble.export_checkpoint(
                checkpoint, folder, schemes, force, allow_degraded, aim, show, complete
            )
    bundle = Bundle.open(folder)
    say(f"wrote {folder} ({format_bytes(bundle.total_bytes)}, {schemes})")
    told = say_quality(bundle)
    _say_engines(engines)
    provider = f" --provider {builder.name}" if builder else ""
    drawn_with = f" --bundle {shlex.quote(str(folder))}" if out else ""
    say(f"next: storyv-lite render STORY.txt{drawn_with}{provider}")
    if as_json:
        sizes = {"bytes": bundle.total_bytes, "scheme": schemes, "engines": _records(engines)}
        say_json({"bundle": str(folder), "checkpoint": str(checkpoint), **sizes, **told})


def say_quality(bundle: Bundle) -> dict[str, object]:
    """Say how close to full precision a new bundle is and how it stores weights; the same for JSON."""
    if bundle.degraded:
        failed = ", ".join(f"{one.component} {one.metric}" for one in bundle.degraded)
        warn(f"the bundle is degraded: {failed} missed the limit")
    if bundle.parity:
        say("stories against full precision: " + ", ".join(f"{k} {v:g}" for k, v in bundle.parity.items()))
    asked, reached = bundle.mixture.get("target_psnr_db"), bundle.parity.get("psnr_db")
    if asked is not None and reached is not None and reached < asked:
        warn(f"{asked:g} dB were asked for, these stories reach {reached:g}: a higher `--target-psnr` helps")
    for row in bundle.mixture.get("layers", ()):
        errors = ", ".join(f"{bits}: {value:.2e}" for bits, value in row["error"].items())
        say(f"  {row['bits']:>2} bits  {row['component']} {row['layer']}  ({errors})")
    weights = {name: variants[0].weights for name, variants in bundle.components.items()}
    wide = sum(len(entry["wide"]) for entry in weights.values())
    say(f"weights: {summary(weights.values())}")
    say(f"{wide} layers are wider than their scheme; `storyv-lite inspect {bundle.path}` says why")
    return {
        "parity": {name: dict(variants[0].parity) for name, variants in bundle.components.items()},
        "story_parity": dict(bundle.parity),
        "degraded": [asdict(one) for one in bundle.degraded],
        "coverage": [asdict(share) for share in shares(weights.values())],
        "weights": dict(weights),
    }


def _add_engines(folder: Path, target: str, force: bool, as_json: bool) -> None:
    """Engines for a bundle that is there, from its own graphs; nothing else of it changes."""
    from storyv_lite.export.engines import add_engines

    builder = _builder(target)
    with progress() as show:
        engines = add_engines(folder, builder, None, force, show)
    _say_engines(engines)
    say(f"next: storyv-lite render STORY.txt --bundle {shlex.quote(str(folder))} --provider {builder.name}")
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
