"""`storyv-lite export`: a checkpoint becomes a bundle that draws without a training framework."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from storyv_lite.bundle import Bundle
from storyv_lite.cli.console import note, progress, say, say_json, warn
from storyv_lite.cli.options import ForceOption, JsonOption
from storyv_lite.coverage import shares, summary
from storyv_lite.errors import ConfigError
from storyv_lite.memory import format_bytes, parse_bytes
from storyv_lite.optional import require
from storyv_lite.quantization import plan


def export(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder [default: the newest].")
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
    schemes = ",".join(filter(None, (asked[0], scheme)))
    plan(schemes)  # a misspelt word is told before anything is loaded
    if (target_bytes or target_psnr is not None) and asked[0] != "int4":
        raise ConfigError("a target chooses among narrow widths; it needs `--int4`", "add --int4")
    if target_bytes and target_psnr is not None:
        raise ConfigError("`--target-bytes` and `--target-psnr` exclude each other", "give one of them")
    most = parse_bytes(target_bytes) if target_bytes else None
    for module in ("torch", "transformers", "diffusers", "onnx", "onnxscript"):
        require(module, "export")
    from storyv_lite.export import assemble
    from storyv_lite.export.mixed import Target

    if checkpoint is None:
        checkpoint = assemble.newest_checkpoint(Path.cwd())
        here = checkpoint.is_relative_to(Path.cwd() / "checkpoints")
        note(f"checkpoint: {checkpoint} ({'the newest in ./checkpoints' if here else 'the one that ships'})")
    name = asked[0] if not scheme else f"{asked[0]}-{scheme.replace('=', '-').replace(',', '-')}"
    target = None if most is None and target_psnr is None else Target(most, target_psnr)
    if target is not None:
        name += f"-{target_bytes or f'{target_psnr:g}dB'}".replace(" ", "")
    folder = out or Path("bundles") / f"{checkpoint.name}-{name}"
    with progress() as show:
        assemble.export_checkpoint(checkpoint, folder, schemes, force, allow_degraded, target, show)
    bundle = Bundle.open(folder)
    say(f"wrote {folder} ({format_bytes(bundle.total_bytes)}, {schemes})")
    if bundle.degraded:
        failed = ", ".join(f"{one.component} {one.metric}" for one in bundle.degraded)
        warn(f"the bundle is degraded: {failed} missed the limit")
    say("stories against full precision: " + ", ".join(f"{k} {v:g}" for k, v in bundle.parity.items()))
    for row in bundle.mixture.get("layers", ()):
        errors = ", ".join(f"{bits}: {value:.2e}" for bits, value in row["error"].items())
        say(f"  {row['bits']:>2} bits  {row['component']} {row['layer']}  ({errors})")
    weights = {name: variants[0].weights for name, variants in bundle.components.items()}
    wide = sum(len(entry["wide"]) for entry in weights.values())
    say(f"weights: {summary(weights.values())}")
    say(f"{wide} layers are wider than their scheme; `storyv-lite inspect {folder}` says why")
    say(f"next: storyv-lite render STORY.txt{f' --bundle {folder}' if out else ''}")
    if as_json:
        parity = {name: dict(variants[0].parity) for name, variants in bundle.components.items()}
        sizes = {"bytes": bundle.total_bytes, "scheme": schemes}
        found = [asdict(share) for share in shares(weights.values())]
        degraded = [asdict(one) for one in bundle.degraded]
        told = {"parity": parity, "story_parity": dict(bundle.parity), "degraded": degraded}
        told |= {"coverage": found, "weights": dict(weights)}
        say_json({"bundle": str(folder), "checkpoint": str(checkpoint), **sizes, **told})
