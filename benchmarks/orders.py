"""The page of the ablations: figures of every variant, and whether the orders of the paper are repeated.

Knows figures, orders and words; nothing about which variants there are or how they were trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.benchmarks.scores import PERCENT, Estimate, Row, estimate, resampling, tally
from storyv_lite.benchmarks.variants import Variant

FIGURES = {
    "char_acc": "Char-Acc",
    "char_acc_references": "of captions without a name",
    "char_f1": "Char-F1",
    "bg_acc": "BG-Acc",
    "action_acc": "actions",
    "frechet_distance": "Fréchet",
}
PAGE = """# Ablations

What each part of the model is worth. All variants had one budget ({budget})
and began with the same autoencoder; stages that two of them share were trained once. All drew the same
{stories} unseen stories of {frames} frames in full precision, and the judge read the pictures. The default
model had a budget of its own: compare rows with rows.

{rows}

Percent, with 95 % bootstrap intervals over stories; the Fréchet distance is on the judge's features. Captions
that are *original* spell out every name, *references* say she, they and there. The last column is
FlintstonesSV in the paper: another world and another judge, so only the order of rows can be compared.

## Against the paper

{orders}

*There* and *here*: points of Char-Acc between the two, in the paper and over the same stories here. An order
is repeated where the whole interval is above zero. Each variant was trained once: the intervals know which
stories were drawn, not what another seed of training would have given.

{count}

Every figure, and how long each stage took: [ablations.json](../benchmarks/results/ablations.json).
Machine: {machine}. Written by:

```bash
{command}
```
"""


@dataclass(frozen=True)
class Order:
    """What the paper found: by Char-Acc, the second variant is better than the first."""

    table: str  # of the paper
    lower: str
    higher: str


@dataclass(frozen=True)
class Measured:
    """The figures of one variant and the judged frames that they count."""

    figures: Mapping[str, Estimate]
    rows: Sequence[Row]


def gain(order: Order, found: Mapping[str, Measured], stories: int) -> Estimate:
    """How much more Char-Acc the variant has that is better in the paper; nothing before both are judged."""
    if order.lower not in found or order.higher not in found:
        return Estimate(None)
    lower, higher = (tally(found[n].rows, stories, PERCENT["char_acc"]) for n in (order.lower, order.higher))
    return estimate(higher, resampling(stories), minus=lower)


def verdict(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return "not measured"
    if found.low > 0:
        return "repeated"
    return "not repeated: the other way round" if found.high < 0 else "not repeated: within chance"


def compare(
    orders: Sequence[Order], variants: Sequence[Variant], found: Mapping[str, Measured], stories: int
) -> list[dict[str, Any]]:
    """Every order of the paper with both variants' Char-Acc there, and whether ours repeats it."""
    paper = {variant.name: variant.paper for variant in variants}
    compared = []
    for order in orders:
        ours = gain(order, found, stories)
        compared.append(
            {
                "table": order.table,
                "lower": order.lower,
                "higher": order.higher,
                "paper": [paper[order.lower], paper[order.higher]],
                "gain": ours.value,
                "interval": [ours.low, ours.high],
                "verdict": verdict(ours),
            }
        )
    return compared


def markdown(record: Mapping[str, Any]) -> str:
    """The page, from the record alone."""
    titles = {row["name"]: f"{row['title']}, {row['captions']}" for row in record["rows"]}
    table = [["variant", "captions", *FIGURES.values(), "Char-Acc in the paper"]]
    for row in record["rows"]:
        cells = [_cell(row, name) for name in FIGURES]
        table.append([row["title"], row["captions"], *cells, _number(row["paper"], "not there")])
    orders = [["table", "worse in the paper", "better in the paper", "there", "here", "the order is"]]
    for one in record["orders"]:
        lower, higher = one["paper"]
        low, high = one["interval"]
        here = "" if one["gain"] is None else f"{one['gain']:+.1f} ({low:+.1f} to {high:+.1f})"
        names = [titles[one["lower"]], titles[one["higher"]]]
        orders.append([one["table"], *names, f"{higher - lower:+.2f}", here, one["verdict"]])
    repeated = sum(one["verdict"] == "repeated" for one in record["orders"])
    machine = record["machine"]
    return PAGE.format(
        budget=", ".join(f"`{setting}`" for setting in record["budget"]),
        stories=record["stories"],
        frames=record["frames"],
        rows=markdown_table(table),
        orders=markdown_table(orders),
        count=f"{repeated} of {len(record['orders'])} orders are repeated.",
        machine=", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]]),
        command=record["command"],
    )


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A figure, with its interval where it has one."""
    value = row["figures"].get(name)
    if value is None or name not in row["intervals"]:
        return _number(value, "none" if row["figures"] else "not measured")
    low, high = row["intervals"][name]
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.2f}"
