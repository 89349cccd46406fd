"""`storyv-lite eval`: how well a bundle or checkpoint draws stories it has never seen.

Knows options and the table; which stories are drawn, and how they are judged, is `quality`'s business.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storyv_lite.checkpoint import find_checkpoint, open_checkpoint
from storyv_lite.cli.console import note, progress, say, say_json
from storyv_lite.cli.options import (
    BundleOption,
    ContextSizeOption,
    DeviceOption,
    ForceOption,
    JsonOption,
    KvCacheOption,
    SpellOutOption,
    command_line,
)
from storyv_lite.errors import ConfigError
from storyv_lite.optional import require
from storyv_lite.outputs import check_file

if TYPE_CHECKING:
    from storyv_lite.benchmarks.scores import Estimate

SEED = 20240624  # of the fixed test set, `GOLDEN_SEED` of the cartoon world
MEANINGS = {
    "char_acc": "all characters right, none more, %",
    "char_f1": "characters, micro F1, %",
    "bg_acc": "place right, %",
    "bg_f1": "place, micro F1, %",
    "char_acc_references": "all characters right where the caption names nobody, %",
    "action_acc": "action right, of all characters, %",
    "prop_acc": "prop or none right, of all characters, %",
    "prop_acc_held": "prop right, of the characters that should hold one, %",
    "position_acc": "position right where the caption tells it, %",
    "char_acc_2_to_5": "all characters right in frames 2 to 5, %",
    "char_acc_last_10": "all characters right in the last ten frames, %",
    "char_acc_lost": "lost from frames 2 to 5 to the last ten, points",
    "frechet_distance": "Fréchet distance to the real frames, judge's features",
    "clip_t": "likeness to the caption, own encoders, cosine; says little, see the real frames",
    "clip_i": "likeness to the real frame, own encoders, cosine",
    "consistency": "likeness over frames: same character less another, judge's features",
}


def evaluate(
    bundle: BundleOption = "",
    checkpoint: Annotated[
        str,
        typer.Option(
            metavar="CHECKPOINT", help="Draw with a checkpoint in full precision, not with a bundle."
        ),
    ] = "",
    stories: Annotated[int, typer.Option(min=1, metavar="N", help="How many stories.")] = 100,
    frames: Annotated[int, typer.Option(min=1, max=1000, metavar="F", help="Frames of each story.")] = 5,
    seed: Annotated[
        int, typer.Option(min=0, metavar="S", help="Which stories; all of them are unseen.")
    ] = SEED,
    split: Annotated[
        str,
        typer.Option(metavar="SPLIT", help="test, or validation: stories to choose a model by, unseen too."),
    ] = "test",
    captions: Annotated[
        str,
        typer.Option(metavar="CAPTIONS", help="references (she, there, it), original (all named) or mixed."),
    ] = "references",
    context: Annotated[
        str,
        typer.Option(
            metavar="CONTEXT",
            help="What is known of earlier frames: interleaved (pictures and captions), captions, none.",
        ),
    ] = "interleaved",
    context_size: ContextSizeOption = "",
    kv_cache: KvCacheOption = "",
    spell_out: SpellOutOption = False,
    judge: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Folder of the judge [default: the checkpoint's; for a bundle that of toon]."
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="CPU threads [default: one per core].")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write every judged frame as JSON here.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw unseen stories of the cartoon world and judge the pictures."""
    if bundle and checkpoint:
        raise ConfigError("`--bundle` and `--checkpoint` exclude each other", hint="give one of them")
    source = find_checkpoint(checkpoint) if checkpoint else None  # before its judge is looked for
    if record is not None:
        check_file(record, force)
    for module in ("torch", "transformers", "diffusers", "skia"):
        require(module, "train")
    if checkpoint:
        for module in ("onnx", "onnxscript"):
            require(module, "export")
    from storyv_lite.benchmarks import quality
    from storyv_lite.benchmarks.machine import versions
    from storyv_lite.bundle import hash_file
    from storyv_lite.runtime.backends import open_backend
    from storyv_lite.runtime.pipeline import StoryPipeline

    folder, why = quality.find_judge(judge, source, Path.cwd())
    reader, likeness = quality.load_judge(folder), quality.load_likeness(folder.parent)
    note(f"judge: {folder} ({why})")
    if likeness is None:
        note(f"no clip_t and no clip_i: `{folder.parent}` holds no encoders")
    told = quality.unseen_stories(stories, frames, seed, split)
    held: dict[str, Any] = {
        "context_size": context_size or None,
        "kv_cache": kv_cache or None,
        "spell_out": spell_out,
    }
    if source:  # before it is exported
        asked = StoryPipeline(open_checkpoint(source), open_backend(device, threads))
        quality.check(asked, told, captions, context, **held)
    with progress() as show, _drawn_with(bundle, source, show) as path:
        pipeline = StoryPipeline.from_bundle(path, device, threads)
        if source:
            note(f"checkpoint: {source}, in full precision")
        else:
            note(f"bundle: {pipeline.bundle.path} ({pipeline.reason})")
        backend = pipeline.backend
        note(f"device: {backend.device}, {backend.provider} ({backend.reason})")
        settings = pipeline.settings(**held)
        found = quality.evaluate(pipeline, reader, likeness, told, captions, context, show, **held)
        pipeline.close()
    drawn, real, counted = quality.summary(found)
    options = {
        "bundle": bundle, "checkpoint": checkpoint, "stories": stories, "frames": frames, "seed": str(seed),
        "split": split, "captions": captions, "context": context, "context-size": context_size,
        "kv-cache": kv_cache, "spell-out": spell_out, "judge": judge, "device": device, "threads": threads,
        "record": record, "force": record is not None,
    }  # fmt: skip
    result: dict[str, Any] = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line("eval", {name: value or None for name, value in options.items()}),
        "versions": versions(),
        "drawn_with": {
            "name": pipeline.bundle.name,
            "sha256": pipeline.bundle.sha256,
            "checkpoint": source is not None,
            "sampler": settings.sampler,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "context_tokens": settings.context_tokens,
            "kv_cache": settings.kv_cache,
            "spell_out": settings.spell_out,
            "device": backend.device,
            "provider": backend.provider,
            "threads": backend.threads,
        },
        "judge_sha256": hash_file(folder / "model.safetensors"),
        "stories": stories,
        "frames": frames,
        "seed": seed,
        "split": split,
        "captions": captions,
        "context": context,
        **quality.as_json(drawn, real, counted),
    }
    _print_tables(drawn, real, counted)
    if record is not None:
        everything = {**result, "rows": quality.rows_as_json(found.rows)}
        record.write_text(json.dumps(everything, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
        say(f"wrote {record}")
    if as_json:
        say_json(result)


def _drawn_with(
    bundle: str, checkpoint: Path | None, show: Callable[[str], None]
) -> AbstractContextManager[str | Path | None]:
    """What `StoryPipeline.from_bundle` should open."""
    if checkpoint is None:
        return nullcontext(bundle or None)
    from storyv_lite.benchmarks.quality import exported

    return exported(checkpoint, show)


def _print_tables(
    drawn: Mapping[str, "Estimate"], real: Mapping[str, "Estimate"], counted: Mapping[str, Any]
) -> None:
    """The figures with their intervals, then what a hard caption costs."""
    cells = [["figure", "value", "95 % interval", "real frames", "meaning"]]
    for name, meaning in MEANINGS.items():
        if name in drawn:
            one, true = drawn[name], real.get(name)
            between = "" if one.low is None else f"{_shown(one.low)} to {_shown(one.high)}"
            cells.append([name, _shown(one.value), between, _shown(true.value) if true else "", meaning])
    _print_table(f"{counted['n']} frames, {counted['n_references']} of them nameless references", cells)
    for title, groups in counted["breakdown"].items():
        table = [[title, "frames", "char_acc"]]
        table += [[name, str(found["n"]), _shown(found["char_acc"])] for name, found in groups.items()]
        _print_table("", table)
    hard = counted["references"]
    say(
        f"of frames 2 and later {hard['nameless']:.0%} name nobody; of these {hard['competing']:.0%} compete "
        f"with another pronoun, {hard['distant']:.0%} reach back two frames or more"
    )
    if counted["frames_dropped"]:
        say(f"the context had no room for {counted['frames_dropped']} finished frames")


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _print_table(title: str, cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for index, head in enumerate(cells[0]):
        table.add_column(head, justify="right" if 0 < index < 4 else "left")
    for line in cells[1:]:
        table.add_row(*line)
    console.print(table, markup=False, highlight=False)
