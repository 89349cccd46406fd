"""What a calibrated rounding is worth: [IMG] states of 4-bit graphs against the wide ones, ways side by side.

Run `python -m storyv_lite.benchmarks.rounding [CHECKPOINT] [--write]`: language model and mapper in 4-bit
blocks, rounded to the nearest level and by GPTQ. Calibration stories are drawn as export draws them; the
figures are of stories that no rounding has seen. Knows nothing of pictures.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from storyv_lite.benchmarks.command import check_written, failed
from storyv_lite.benchmarks.report import markdown_table
from storyv_lite.components import Component
from storyv_lite.errors import StoryVError
from storyv_lite.optional import require
from storyv_lite.quantization import Rounding, plan

COMMAND = "python -m storyv_lite.benchmarks.rounding"
CHECKPOINT, DOCUMENT = Path("checkpoints/toon"), Path("docs/reference/rounding.md")
COMPONENTS = (Component.LANGUAGE_MODEL, Component.MAPPER)
_HEAD = f"""# Rounding of 4-bit weights

Written by `{COMMAND} --write`. States of the [IMG] tokens (language model) and the conditioning made of them
(mapper) in 4-bit blocks, against the same graphs in float32, on calibration stories that no rounding has
seen; keys and values of earlier frames are the wide model's. `nearest` rounds every weight to its nearest
level, `gptq` lets roundings make up for each other on what the calibration stories fed the layer.

"""


def table(wide: Path, stories: Sequence[dict[str, object]]) -> str:
    """Markdown: a row for each component and rounding, of a float32 bundle; half of `stories` calibrate.

    Raises `BundleError` where the bundle or the stories are missing.
    """
    from storyv_lite.bundle import Bundle
    from storyv_lite.export.calibrate import STORIES, calibrate, input_moments, run_graph
    from storyv_lite.export.capture import load_graph
    from storyv_lite.export.layers import moment_tensors
    from storyv_lite.export.quantize import quantize
    from storyv_lite.export.verify import compare

    half = min(STORIES, len(stories) // 2)
    seen, unseen = (
        calibrate(wide, part, lambda _: None) for part in (stories[:half], stories[half : 2 * half])
    )
    rows = [["component", "rounding", "cosine", "SNR (dB)"]]
    tokens = Bundle.open(wide, verify=False).model.dimensions.image_tokens
    for component in COMPONENTS:
        model = load_graph(wide / component)
        answers = {}
        for rounding in Rounding:
            scheme = replace(plan("int4")[component], rounding=rounding)
            moments = input_moments(model, moment_tensors(model, scheme), seen[component])
            answers[rounding] = run_graph(quantize(model, scheme, moments=moments).model, unseen[component])
        reference = run_graph(model, unseen[component])
        for rounding, answer in answers.items():
            # [IMG] tokens are the last that a frame's query reads; the mapper answers with nothing else.
            cut = -tokens if component is Component.LANGUAGE_MODEL else 0
            near, exact = (np.concatenate([a[:, cut:].ravel() for a in s]) for s in (answer, reference))
            parity = compare(near, exact)
            rows.append([component, rounding, f"{parity.cosine:.5f}", f"{parity.snr_db:.2f}"])
    return markdown_table(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Roundings of 4-bit weights side by side.")
    parser.add_argument("checkpoint", nargs="?", type=Path, default=CHECKPOINT, help=f"[{CHECKPOINT}]")
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT}")
    asked = parser.parse_args(arguments)
    try:
        check_written(DOCUMENT if asked.write else None)
        for module in ("torch", "onnx", "onnxscript"):
            require(module, "export")
        from storyv_lite.export.assemble import export_wide
        from storyv_lite.export.calibrate import read_stories

        with tempfile.TemporaryDirectory() as folder:
            export_wide(asked.checkpoint, Path(folder))
            found = table(Path(folder), read_stories(asked.checkpoint))
    except StoryVError as fault:
        return failed(fault)
    print(found)
    if asked.write:
        DOCUMENT.write_text(f"{_HEAD}{found}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
