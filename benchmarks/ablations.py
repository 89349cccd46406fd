"""Ablations: what each part of the model is worth, beside the paper's tables 1, 3 and 4 to 8.

Run `python -m storyv_lite.benchmarks.ablations`: every variant is trained in one budget from the same
autoencoder and judged on the same unseen stories. Stopped or out of `--minutes`, the same command goes on.
Knows the variants and what the paper found; how one is trained and judged is `variants`' business, what is
shown of it `orders`'.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.benchmarks import quality
from storyv_lite.benchmarks.command import check_written, failed, heading, tell, write_page
from storyv_lite.benchmarks.orders import Measured, Order, compare, markdown
from storyv_lite.benchmarks.variants import Variant, Workplace, draw_and_judge, evaluation, spent, train
from storyv_lite.bundle import hash_file
from storyv_lite.errors import ConfigError, StoryVError
from storyv_lite.optional import require
from storyv_lite.train.toonworld.splits import GOLDEN_SEED

COMMAND = "python -m storyv_lite.benchmarks.ablations"
DOCUMENT, RESULT = Path("docs/results.md"), Path("benchmarks/results/ablations.json")
BUDGET = (
    "image_text.max_train_steps=420",
    "char_ldm.max_train_steps=3000",
    "story_lm.max_train_steps=1600",
    "align.max_train_steps=800",
)
NOTHING_FUSED = ("char_ldm.text_only_prob=1.0", "char_ldm.reg_weight=0.0")

# Stage 1 is drawn without the language model (context none); stage 2 reads captions with references.
VARIANTS = (
    Variant("ldm", "LDM: caption only", "char_ldm", "original", "none", NOTHING_FUSED, False, 85.66),
    Variant("char-ldm", "Char-LDM", "char_ldm", "original", "none", paper=90.36),
    Variant(
        "no-attention-loss",
        "Char-LDM without the attention loss",
        "char_ldm",
        "original",
        "none",
        ("char_ldm.reg_weight=0.0",),
        paper=88.86,
    ),
    Variant("ldm-references", "LDM", "char_ldm", "references", "none", NOTHING_FUSED, False, 75.37),
    Variant("char-ldm-references", "Char-LDM, no language model", "char_ldm", "references", "none"),
    Variant(
        "captions-only",
        "StoryV, captions only",
        "align",
        "references",
        "captions",
        ("align.context=captions",),
        paper=71.77,
    ),
    Variant("interleaved", "StoryV, 8 [IMG] tokens", "align", "references", "interleaved", paper=87.96),
    Variant(
        "image-tokens-4",
        "StoryV, 4 [IMG] tokens",
        "align",
        "references",
        "interleaved",
        ("model.language.image_tokens=4",),
        paper=86.23,
    ),
    Variant(
        "image-tokens-16",
        "StoryV, 16 [IMG] tokens",
        "align",
        "references",
        "interleaved",
        ("model.language.image_tokens=16",),
        paper=85.35,
    ),
)


ORDERS = (
    Order("1", "ldm", "char-ldm"),
    Order("1", "ldm-references", "ldm"),
    Order("1", "ldm-references", "interleaved"),
    Order("1", "interleaved", "char-ldm"),
    Order("3", "no-attention-loss", "char-ldm"),
    Order("4, 7, 8", "captions-only", "interleaved"),
    Order("4, 7, 8", "image-tokens-4", "interleaved"),
    Order("4, 7, 8", "image-tokens-16", "interleaved"),
    Order("4, 7, 8", "image-tokens-16", "image-tokens-4"),
)


def make_record(
    place: Workplace, found: Mapping[str, Measured], stories: int, judge_sha256: str, command: str
) -> dict[str, Any]:
    """Everything of the page and more, as plain JSON; a variant that is not judged yet has no figures."""
    rows, names = [], {variant.name for variant in place.variants}
    orders = [order for order in ORDERS if {order.lower, order.higher} <= names]
    for variant in place.variants:
        figures = found[variant.name].figures if variant.name in found else {}
        rows.append(
            {
                "name": variant.name,
                "title": variant.title,
                "settings": list(variant.settings),
                "captions": variant.captions,
                "context": variant.context,
                "portraits": variant.portraits,
                "paper": variant.paper,
                "figures": {name: one.value for name, one in figures.items()},
                "intervals": {n: [one.low, one.high] for n, one in figures.items() if one.low is not None},
                "stages": spent(place, variant),
            }
        )
    return {
        **heading(command),
        "preset": place.preset,
        "budget": list(place.settings),
        "stories": stories,
        "frames": place.frames,
        "seed": place.seed,
        "judge_sha256": judge_sha256,
        "rows": rows,
        "orders": compare(orders, place.variants, found, stories),
    }


def run(
    place: Workplace, only: Sequence[str], stories: int, judge: Path, told: Callable[[str], None]
) -> bool:
    """Train and judge the variants named in `only`, or all; false when the time was over first."""
    reader, likeness = quality.load_judge(judge), quality.load_likeness(judge.parent)
    place.begin(judge)
    for variant in place.variants:
        if only and variant.name not in only:
            continue
        told(f"{variant.name}: {', '.join(variant.stages())}")
        if not train(place, variant, variant.trained):
            return False
        if not draw_and_judge(place, variant, stories, reader, likeness, told):
            return False
    return True


def measured(place: Workplace, stories: int) -> dict[str, Measured]:
    """The figures of every variant that has been judged on all stories."""
    found = {}
    for variant in place.variants:
        if (judged := evaluation(place, variant, stories)) is not None:
            found[variant.name] = Measured(quality.summary(judged)[0], judged.rows)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, judge, print the page and the record; what there was no time for stays unmeasured."""
    asked = _parser().parse_args(arguments)
    try:
        check_written(*([DOCUMENT, RESULT] if asked.write else []))
        for module in ("torch", "transformers", "diffusers", "accelerate", "skia"):
            require(module, "train")
        require("onnx", "export")
        from storyv_lite.train.loop import STOP

        if unknown := set(asked.only) - {variant.name for variant in VARIANTS}:
            raise ConfigError(
                f"there is no variant `{min(unknown)}`",
                hint=f"variants are {', '.join(variant.name for variant in VARIANTS)}",
            )
        judge, _ = quality.find_judge(asked.judge, asked.checkpoint, Path.cwd())
        deadline = None if asked.minutes is None else time.monotonic() + 60 * asked.minutes
        place = Workplace(
            asked.out,
            asked.checkpoint,
            VARIANTS,
            asked.preset,
            tuple({text.partition("=")[0]: text for text in (*BUDGET, *asked.settings)}.values()),
            asked.device,
            asked.frames,
            asked.seed,
            deadline,
        )
        done = run(place, asked.only, asked.stories, judge, tell)
    except StoryVError as fault:
        return failed(fault)
    except KeyboardInterrupt:
        tell("stopped; the same command goes on")
        return 130
    found = measured(place, asked.stories)
    record = make_record(
        place, found, asked.stories, hash_file(judge / "model.safetensors"), _command(arguments)
    )
    page = markdown(record)
    print(page)
    if asked.write:
        write_page(DOCUMENT, page, RESULT, record)
    print(json.dumps(record))
    if not done:
        tell("not finished; the same command goes on")
    return 130 if STOP.is_set() and not done else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train and judge every variant of the model.")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/toon"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("checkpoints/ablations"), metavar="FOLDER")
    parser.add_argument("--preset", default="toon")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SETTING")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="may be repeated")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--stories", type=int, default=100, metavar="N")
    parser.add_argument("--frames", type=int, default=5, metavar="F", help="of each story")
    parser.add_argument("--seed", type=int, default=GOLDEN_SEED, help="which stories")
    parser.add_argument("--judge", type=Path, metavar="PATH", help="[the checkpoint's]")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--write", action="store_true", help=f"write {DOCUMENT} and {RESULT}")
    return parser


def _command(arguments: Sequence[str] | None) -> str:
    """How to get this record again: without what cuts a run in pieces."""
    cut = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    cut.add_argument("--minutes")
    cut.add_argument("--only", action="append")
    _, given = cut.parse_known_args(arguments)
    return shlex.join([*COMMAND.split(), *given])


if __name__ == "__main__":
    sys.exit(main())
