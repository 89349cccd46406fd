"""The record of a measurement, and how it is shown: tables on a terminal, a report in Markdown.

Knows columns and units; measures nothing. Everything shown is in the record, so a report can be written again
from it. Names no folder of the machine it ran on.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from storyv_lite.benchmarks.child import PHASES
from storyv_lite.benchmarks.command import heading
from storyv_lite.benchmarks.machine import Machine
from storyv_lite.benchmarks.measure import Row, Spread
from storyv_lite.memory import format_bytes

NOT_MEASURED = "not measured"
TIMES = {
    "cold_start": "cold start",
    "story": "whole story",
    "cold_frame": "cold frame",
    "first_frame": "first frame",
    "steady_frame": "steady frame",
}
HOLDINGS = {"peak": "peak memory", "anonymous": "own pages", "file": "file pages", "device": "VRAM"}


def make_record(
    rows: Sequence[Row], captions: Sequence[str], repeat: int, command: str, machine: Machine | None = None
) -> dict[str, Any]:
    """Everything of one run as plain JSON: what was asked, where, and what came out."""
    return {
        **heading(command, machine),
        "captions": list(captions),
        "repeat": repeat,
        "rows": [row.as_dict() for row in rows],
    }


def cost_table(rows: Sequence[Row]) -> list[list[str]]:
    """A header and one row of text per bundle: bytes, seconds, memory."""
    table = [["bundle", "on disk", *TIMES.values(), *HOLDINGS.values()]]
    for row in rows:
        if row.error:
            table.append([row.bundle, f"failed: {row.error}", *[""] * (len(TIMES) + len(HOLDINGS))])
            continue
        times = [show_spread(row.seconds.get(name)) for name in TIMES]
        holdings = [show_bytes(row.memory.get(name)) for name in HOLDINGS]
        table.append([row.bundle, format_bytes(row.found["bytes"]), *times, *holdings])
    return table


def phase_table(rows: Sequence[Row]) -> list[list[str]]:
    """Seconds per phase of a steady frame."""
    table = [["bundle", *PHASES]]
    for row in rows:
        if not row.error:
            table.append([row.bundle, *(show_spread(row.phases.get(phase)) for phase in PHASES)])
    return table


def component_table(rows: Sequence[Row]) -> list[list[str]]:
    """Bytes on disk per component, one column per bundle."""
    measured = [row for row in rows if not row.error]
    names = dict.fromkeys(name for row in measured for name in row.found["components"])
    table = [["component", *(row.bundle for row in measured)]]
    for name in names:
        parts = [row.found["components"].get(name) for row in measured]
        table.append([name, *(f"{p['scheme']}, {format_bytes(p['bytes'])}" if p else "" for p in parts)])
    return table


def show_spread(spread: Spread | None) -> str:
    """Median, 90th percentile and count: `0.812 (0.830, 8)`."""
    if spread is None:
        return NOT_MEASURED
    return f"{spread.median:.3g} ({spread.p90:.3g}, {spread.count})"


def show_bytes(count: int | None) -> str:
    return NOT_MEASURED if count is None else format_bytes(count)


def markdown_table(table: Sequence[Sequence[str]]) -> str:
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The report of one run; what the columns mean is written in `docs/reference/benchmarks.md`."""
    machine = record["machine"]
    memory = show_bytes(machine["memory_bytes"])
    load = machine["load_average"]
    facts = [
        f"processor: {machine['cpu']}, {machine['cores']} cores ({', '.join(machine['vector_units'])})",
        f"memory: {memory}",
        f"GPU: {'; '.join(machine['gpus']) or 'none'}",
        f"system: {machine['system']}",
        f"load average before the run: {NOT_MEASURED if load is None else load}",
        f"versions: {', '.join(f'{name} {version}' for name, version in record['versions'].items())}",
        f"measured: {record['created'][:10]}",
    ]
    measured = [row for row in rows if not row.error]
    drawn = [
        f"- `{row.bundle}`: bundle {row.found['sha256'][:12]}, {row.provider}, "
        f"{row.settings['sampler']} with {row.settings['num_inference_steps']} steps, "
        f"guidance {row.settings['guidance_scale']:g}; "
        f"a token of context takes {format_bytes(row.found['kv_bytes_per_token'])}"
        for row in measured
    ]
    sections = [
        "# What the bundles cost",
        f"{len(record['captions'])} frames, {record['repeat']} processes per bundle. Times are seconds: "
        "median (90th percentile, count). [What the columns mean](benchmarks.md). Written again by:\n\n"
        f"```bash\n{record['command']}\n```",
        markdown_table(cost_table(rows)),
    ]
    if measured:
        sections += ["\n".join(drawn), "## Seconds per phase of a steady frame"]
        sections += [markdown_table(phase_table(rows)), "## Bytes per component"]
        sections += [markdown_table(component_table(rows))]
    sections += ["## Where", "\n".join(f"- {fact}" for fact in facts)]
    return "\n\n".join(sections) + "\n"


def print_tables(rows: Sequence[Row]) -> None:
    """The same tables on the terminal, failures in full below them."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no width of its own
    shown = (
        ("seconds: median (90th percentile, count)", cost_table(rows)),
        ("seconds per phase of a steady frame", phase_table(rows)),
    )
    for title, cells in shown:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for index, head in enumerate(cells[0]):
            table.add_column(head, justify="left" if index == 0 else "right")
        for line in cells[1:]:
            table.add_row(*("failed" if cell.startswith("failed: ") else cell for cell in line))
        if len(cells) > 1:
            console.print(table, markup=False, highlight=False)
    for row in rows:
        if row.error:
            console.print(f"{row.bundle} failed: {row.error}", markup=False, highlight=False)
