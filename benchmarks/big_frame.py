"""A story drawn on a small machine by 7 B weights that read and Stable Diffusion 1.5's UNet, in 4 bits.

Run `python -m storyv_lite.benchmarks.big_frame FOLDER`; FOLDER needs 25 GB. A whole checkpoint with random
weights is made, exported by `--low-memory`, planned within a budget and drawn with that plan: every step in a
process of its own, whose peak of resident memory is printed. Steps that a run before it finished are not
taken again; a FOLDER with steps of another size, budget or story is refused. Exit code 1 where a phase took
more than was planned, or the story less than 85 % of it.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks import child
from storyv_lite.benchmarks.big_checkpoint import Size, add_size, chosen_size, make_checkpoint
from storyv_lite.benchmarks.budgets import faults
from storyv_lite.benchmarks.command import failed, heading, tell, typed, write_record
from storyv_lite.benchmarks.measure import ask_or_raise
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.errors import OutputError, StoryVError
from storyv_lite.memory import format_bytes, parse_bytes

MODULE = "storyv_lite.benchmarks.big_frame"
SCHEMES = "int4,unet=int4,vae=int4,fusion=int4"
STORY = ("Milo is waving in the meadow.", "He is holding a balloon.", "Luna joins him.")
TIMEOUT_S = 3 * 3600.0
Request = Mapping[str, Any]


def make(folder: Path, request: Request) -> dict[str, Any]:
    return {"parameters": make_checkpoint(folder / "checkpoint", Size(**request["size"]))}


def export(folder: Path, request: Request) -> dict[str, Any]:
    """As `storyv-lite export checkpoint --low-memory --int4 --scheme unet=int4,vae=int4,fusion=int4` does."""
    from storyv_lite.bundle import Bundle
    from storyv_lite.export.streamed import stream_checkpoint

    checkpoint, out = folder / "checkpoint", folder / "bundle"
    bundle = Bundle.open(
        stream_checkpoint(checkpoint, out, SCHEMES, part_bytes=request["part_bytes"], progress=tell)
    )
    return {"bytes": bundle.total_bytes, **child.describe(bundle)}


STEPS: Mapping[str, Callable[[Path, Request], dict[str, Any]]] = {"make": make, "export": export}


def measure(
    folder: Path, size: Size, part_bytes: int, ram: str, steps: int, frames: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """Every step in a process of its own; the answer of a finished one lies beside what it made.

    Raises `OutputError` where the folder holds steps of something else, `BackendError` when a step fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {"size": asdict(size), "part_bytes": part_bytes}
    _same(folder / "asked.json", {**made, "ram": ram, "steps": steps, "frames": frames})
    story = folder / "story.txt"
    story.write_text("\n".join(STORY[:frames]) + "\n", encoding="utf-8")
    request = {"folder": str(folder), **made}
    given = [str(story), "--bundle", str(folder / "bundle"), "--ram", ram, "--steps", str(steps)]
    given += ["--device", "cpu", "--json"]
    program = [sys.executable, "-m", "storyv_lite"]
    drawing = ["-o", str(folder / "story"), "--strict-budget", "--force"]
    commands = {
        **{name: [sys.executable, "-m", MODULE, "--step", name] for name in STEPS},
        "plan": [*program, "plan", *given],
        "render": [*program, "render", *given, *drawing],
    }
    found = {}
    for name, command in commands.items():
        told(name)
        found[name] = _once(folder / f"{name}.json", command, request)
    found["plan"].pop("path", None)  # where it was made is nobody's business
    return found


def row(found: Mapping[str, Any]) -> dict[str, Any]:
    """The story as a row of `benchmarks.budgets`."""
    drawn = found["render"]
    return {
        "planned_bytes": drawn["plan"]["ram_bytes"],
        "measured_bytes": drawn["memory_bytes"]["peak"],
        "phases": drawn["plan"]["phases"],
    }


def table(found: Mapping[str, Any]) -> str:
    """Markdown: what was exported, then planned and measured memory of each phase, then seconds."""
    export, drawn = found["export"], found["render"]
    parts = [["component", "weights", "stored as", "parts"]]
    for name, one in export["components"].items():
        parts.append([name, format_bytes(one["bytes"]), one["scheme"], str(one["parts"])])
    phases = [["phase", "loaded for it alone", "planned", "measured", "part"]]
    for one in drawn["plan"]["phases"]:
        planned, measured = one["ram_bytes"], one["measured_bytes"]
        loaded = ", ".join(one["loaded"]) or "-"
        phases.append(
            [one["name"], loaded, format_bytes(planned), format_bytes(measured), f"{measured / planned:.0%}"]
        )
    names = list(dict.fromkeys(name for frame in drawn["frames"] for name in frame["timings_ms"]))
    seconds = [["frame", *names]]
    for frame in drawn["frames"]:
        times = (frame["timings_ms"].get(name) for name in names)
        seconds.append([str(frame["frame"]), *("-" if t is None else f"{t / 1000:.1f} s" for t in times)])
    choice, one = drawn["plan"]["choice"], row(found)
    told = (
        f"export, peak: {format_bytes(export['peak_bytes'])}; "
        f"planned: {format_bytes(one['planned_bytes'])}; measured: {format_bytes(one['measured_bytes'])} "
        f"({one['measured_bytes'] / one['planned_bytes']:.0%}); "
        f"stays loaded: {', '.join(choice['kept']) or 'nothing'}; "
        f"guidance: {'one pass' if choice['batched'] else 'two passes'}; tile: {choice['tile'] or 'none'}"
    )
    return "\n\n".join([*map(markdown_table, (parts, phases, seconds)), told])


def _same(file: Path, asked: Mapping[str, Any]) -> None:
    """Refuse to put answers to other questions into one record."""
    if not file.is_file():
        write_record(file, asked)
    elif (before := json.loads(file.read_text(encoding="utf-8"))) != asked:
        raise OutputError(
            f"what `{file.parent}` holds was asked for otherwise: {before}", "name another folder"
        )


def _once(file: Path, command: Sequence[str], request: Request) -> dict[str, Any]:
    """The answer of a command, from the file where it was answered before."""
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    answer = ask_or_raise(file.stem, command, request, TIMEOUT_S)
    write_record(file, answer)
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="where everything is made")
    parser.add_argument("--ram", default="4.5GB", help="the budget [4.5GB]")
    parser.add_argument("--frames", type=int, default=2, choices=(1, 2, 3), help="of the story [2]")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of a frame [2]")
    add_size(parser)
    parser.add_argument("--part", default="512MiB", help="stored weights of one part, about [512MiB]")
    parser.add_argument("--record", type=Path, help="a JSON file for the figures")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        step = STEPS[given.step]
        return child.answer(child.costed(lambda request: step(Path(request["folder"]), request)))
    if given.folder is None:
        parser.error("a folder with 25 GB of room is needed")
    try:
        size, part_bytes = chosen_size(given), parse_bytes(given.part)
        found = measure(given.folder, size, part_bytes, given.ram, given.steps, given.frames, tell)
    except StoryVError as fault:
        return failed(fault)
    print(table(found))
    if given.record:
        write_record(given.record, {**heading(typed(f"python -m {MODULE}", arguments)), **found})
    problems = faults(row(found))
    for problem in problems:
        tell(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
