"""What narrow weights cost and save: bundles of one model beside its bundle in full precision, one row each.

Run `python -m storyv_lite.benchmarks.schemes --wide FP32_BUNDLE BUNDLE... [--stories N] [--write]`. Bytes,
seconds and memory are `measure`'s, likeness to full precision is `widths`', judged frames and paired losses
`scores`'; here they come together. Judged stories are kept by the hashes of bundle and judge, so a run that
was stopped goes on; what takes a minute is measured anew, all bundles in turns.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks import quality
from storyv_lite.benchmarks.command import check_written, failed, heading, tell, typed, write_page
from storyv_lite.benchmarks.judged import judge_missing, read_judged
from storyv_lite.benchmarks.machine import this_machine
from storyv_lite.benchmarks.measure import PICNIC, Row, measure_bundles
from storyv_lite.benchmarks.report import markdown_table, show_bytes, show_spread
from storyv_lite.benchmarks.scores import PERCENT, Estimate, estimate, paired, resampling, tally
from storyv_lite.benchmarks.widths import CHECKPOINT, compare_bundles
from storyv_lite.bundle import Bundle, find_bundle, hash_file
from storyv_lite.errors import ConfigError, StoryVError
from storyv_lite.optional import require
from storyv_lite.runtime.pipeline import StoryPipeline
from storyv_lite.train.toonworld.splits import GOLDEN_SEED

COMMAND = "python -m storyv_lite.benchmarks.schemes"
DOCUMENT, RESULT = Path("docs/reference/schemes.md"), Path("benchmarks/results/schemes.json")
RECORDS = Path("checkpoints/schemes")
STORIES, FRAMES = 200, 5
COMPARED = 8  # of the calibration stories, that pictures are compared on
FIGURE = "char_acc"
PAGE = """# What narrow weights cost

Bundles of one model, the first in full precision: the weights of the checkpoint, computed in 32 bits. Those
of a committed checkpoint have 16, so fp16 stores all of them. *On disk* to *peak memory*: as
`storyv-lite bench` measures, {processes} processes per bundle, in turns; seconds of a steady frame, median
(90th percentile, count). *PSNR*: pictures of {compared} calibration stories against those of full precision.
*Char-Acc*: {stories} unseen stories of {frames} frames, read by the judge, percent with 95 % bootstrap
interval over stories. *Lost*: points of Char-Acc that full precision has more, on the same stories with the
same noise; where the interval holds zero, the difference may be chance.

{table}

Machine: {machine}, load average before {load}. Versions: {versions}. Every figure:
[schemes.json](../../benchmarks/results/schemes.json). Written again by:

```bash
{command}
```
"""


@dataclass(frozen=True)
class Measured:
    """Everything of one bundle."""

    name: str
    sha256: str
    cost: Row
    fidelity: Mapping[str, float]  # to full precision, by `widths.compare_bundles`
    char_acc: Estimate
    lost: Estimate  # by full precision less this one, in pairs


def judge_all(
    bundles: Mapping[str, Path],
    judge: Path,
    count: int,
    frames: int,
    seed: int,
    records: Path,
    told: Callable[[str], None],
) -> dict[str, quality.Evaluation]:
    """`count` judged stories of every bundle, by its name; those that `records` holds are not drawn again."""
    stories = quality.unseen_stories(count, frames, seed)
    reader, found = quality.load_judge(judge), {}
    for name, path in bundles.items():
        folder = records / _key(path, judge, seed, frames)
        told(f"judge {name}")
        opened = partial(StoryPipeline.from_bundle, path, "cpu")
        judge_missing(folder, stories, opened, reader, None, told=told)
        judged = read_judged(folder, stories)
        assert judged is not None  # nothing was missing any more
        found[name] = judged
    return found


def measure(
    bundles: Mapping[str, Path],
    calibration: Sequence[Mapping[str, Any]],
    judged: Mapping[str, quality.Evaluation],
    processes: int,
    told: Callable[[str], None],
) -> list[Measured]:
    """One row per bundle; the first is what the others are compared with. Raises `BundleError`."""
    wide = next(iter(bundles))
    told("compare pictures")
    fidelity = compare_bundles(bundles[wide], list(bundles.values()), calibration)
    costs = measure_bundles(bundles, PICNIC, processes, told=told)
    rows = []
    for (name, path), cost in zip(bundles.items(), costs, strict=True):
        drawn, count = judged[name].rows, len(judged[name].stories)
        rows.append(
            Measured(
                name,
                Bundle.open(path, verify=False).sha256,
                cost,
                fidelity[path.name],
                estimate(tally(drawn, count, PERCENT[FIGURE]), resampling(count)),
                paired(judged[wide].rows, drawn, FIGURE),
            )
        )
    return rows


def table(rows: Sequence[Measured]) -> list[list[str]]:
    """A header and one row per bundle; the first has nothing to be compared with."""
    cells = [["bundle", "on disk", "seconds", "peak memory", "PSNR, dB", "Char-Acc", "lost"]]
    for row in rows:
        cost, first = row.cost, row is rows[0]
        failed = f"failed: {cost.error}" if cost.error else ""
        cells.append(
            [
                row.name,
                show_bytes(int(row.fidelity["bytes"])),
                failed or show_spread(cost.seconds.get("steady_frame")),
                "" if failed else show_bytes(cost.memory.get("peak")),
                "" if first else _decibels(row.fidelity["psnr_db"]),
                _show(row.char_acc, ".1f"),
                "" if first else _show(row.lost, "+.1f"),
            ]
        )
    return cells


def _decibels(psnr: float) -> str:
    from storyv_lite.export.story_parity import EQUAL_DB

    return "equal" if psnr >= EQUAL_DB else f"{psnr:.1f}"


def _show(one: Estimate, form: str) -> str:
    if one.value is None or one.low is None or one.high is None:
        return "none"
    return f"{one.value:{form}} ({one.low:{form}} to {one.high:{form}})"


def _key(bundle: Path, judge: Path, seed: int, frames: int) -> str:
    """What judged stories depend on, beside their number, as the name of a folder."""
    opened = Bundle.open(bundle, verify=False)
    judged_by = hash_file(judge / "model.safetensors")
    return f"{opened.name}-{opened.sha256[:12]}-judge-{judged_by[:12]}-seed-{seed}-frames-{frames}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, measure, print the page and the record; 1 when a bundle could not be measured."""
    asked = _parser().parse_args(arguments)
    machine = this_machine()  # its load, before this run adds to it
    try:
        check_written(*([DOCUMENT, RESULT] if asked.write else []))
        for module in ("torch", "transformers", "diffusers", "skia"):
            require(module, "train")
        require("onnx", "export")
        from storyv_lite.export.calibrate import read_stories

        bundles = _by_name([asked.wide, *asked.bundles])
        calibration = read_stories(asked.checkpoint)[:COMPARED]
        judge, _ = quality.find_judge(asked.judge, asked.checkpoint, Path.cwd())
        judged = judge_all(bundles, judge, asked.stories, asked.frames, asked.seed, asked.records, tell)
        rows = measure(bundles, calibration, judged, asked.processes, tell)
    except StoryVError as fault:
        return failed(fault)
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return 130
    record = {
        **heading(typed(COMMAND, arguments), machine),
        "stories": asked.stories,
        "frames": asked.frames,
        "seed": asked.seed,
        "compared": len(calibration),
        "processes": asked.processes,
        "rows": [asdict(row) for row in rows],
    }
    page = markdown(record, rows)
    print(page)
    if asked.write:
        write_page(DOCUMENT, page, RESULT, record)
    print(json.dumps(record))
    return 1 if any(row.cost.error for row in rows) else 0


def markdown(record: Mapping[str, Any], rows: Sequence[Measured]) -> str:
    """The page, from the record and its rows."""
    machine = record["machine"]
    names = ("processes", "compared", "stories", "frames", "command")
    return PAGE.format(
        table=markdown_table(table(rows)),
        machine=f"{machine['cores']} cores of {machine['cpu']}",
        load=machine["load_average"],
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        **{name: record[name] for name in names},
    )


def _by_name(asked: Sequence[str]) -> dict[str, Path]:
    """The folders of the bundles, by the names of the folders. Raises `BundleError`, and `ConfigError`."""
    paths = [find_bundle(one)[0] for one in asked]
    found = {path.name: path for path in paths}
    if len(found) < len(paths):
        raise ConfigError("two of the bundles have one name", hint="rename the folder of one of them")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Bundles of one model, in one table.")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="folder or name")
    parser.add_argument("--wide", required=True, metavar="BUNDLE", help="the model exported with `--fp32`")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT, help=f"calibration stories and judge [{CHECKPOINT}]"
    )
    parser.add_argument("--judge", type=Path, metavar="PATH", help="[the checkpoint's]")
    parser.add_argument("--stories", type=int, default=STORIES, metavar="N", help=f"to judge [{STORIES}]")
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="F", help=f"of each story [{FRAMES}]")
    parser.add_argument("--seed", type=int, default=GOLDEN_SEED, help="which stories")
    parser.add_argument("--processes", type=int, default=3, metavar="N", help="to time each bundle in [3]")
    parser.add_argument("--records", type=Path, default=RECORDS, help=f"what is judged already [{RECORDS}]")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT} and {RESULT}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
