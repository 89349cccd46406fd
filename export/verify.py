"""The parity gate: every exported component is run and compared with the module it came from.

Knows how far each scheme may stray and how to measure it; runs as a child process
(`python -m storyv_lite.export.verify FOLDER`), because ONNX Runtime does not give memory back. Shapes are
compared as well as values: a graph that answers in another shape is no rounding.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from storyv_lite.errors import ParityError

Array = NDArray[Any]
CASES = "cases.npz"  # inputs `I/in/NAME` and what the module answered, `I/out/NAME`, case by case

# Smallest signal-to-noise ratio, in decibels, of a component stored by each scheme: well below what trained
# weights reach, so that a broken layer is caught and a seed is not.
MIN_SNR = {"fp32": 80.0, "fp16": 50.0, "int8-weights": 25.0, "int8": 15.0, "int4-block32": 10.0}


@dataclass(frozen=True)
class Parity:
    """What was measured over all cases and outputs of one component."""

    snr_db: float  # energy of the answer over energy of the error
    cosine: float  # between answer and reference, all values in a row
    max_abs_error: float
    psnr_db: float  # against the range of the reference, as pictures are compared
    cases: int


def save_cases(folder: Path, cases: list[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> None:
    """Store inputs and reference outputs beside a graph, for the child to read."""
    arrays = {
        f"{index}/{kind}/{name}": array
        for index, case in enumerate(cases)
        for kind, tensors in zip(("in", "out"), case, strict=True)
        for name, array in tensors.items()
    }
    np.savez(folder / CASES, **arrays)  # type: ignore[arg-type]  # takes them for its own options


def verify(folders: Mapping[str, Path], schemes: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Measure every component in one child process and hold it to its scheme's limit.

    `folders` maps a component to the folder of its graph and cases, `schemes` to its scheme's name. Returns
    the figures for the manifest. Raises `ParityError` naming component, metric, value and limit.
    """
    import storyv_lite

    root = str(Path(storyv_lite.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", __name__, *(f"{name}={path}" for name, path in folders.items())]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    if child.returncode != 0:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise ParityError(f"an exported graph does not run: {last}")
    measured: dict[str, dict[str, float]] = json.loads(child.stdout.splitlines()[-1])
    for name, figures in measured.items():
        limit = MIN_SNR[schemes[name]]
        if not figures["snr_db"] >= limit:  # also when it is no number
            raise ParityError(
                f"`{name}` ({schemes[name]}) has snr_db {figures['snr_db']:.1f}; {limit:.1f} is needed",
                hint="export it with a wider scheme, such as `storyv-lite export --fp32`",
            )
    return measured


def measure(folder: Path) -> Parity:
    """Run the graph in `folder` on its cases. Raises `ParityError` for a wrong shape."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    answers: list[Array] = []
    references: list[Array] = []
    with np.load(folder / CASES, allow_pickle=False) as arrays:
        count = 1 + max(int(key.split("/", 1)[0]) for key in arrays.files)
        for index in range(count):
            inputs = {
                key.split("/", 2)[2]: arrays[key] for key in arrays.files if key.startswith(f"{index}/in/")
            }
            for name, answer in zip(names, session.run(names, inputs), strict=True):
                reference = arrays[f"{index}/out/{name}"]
                if answer.shape != reference.shape:
                    raise ParityError(f"`{name}` has the shape {answer.shape}; {reference.shape} is needed")
                answers.append(answer.ravel())
                references.append(reference.ravel())
    return compare(np.concatenate(answers), np.concatenate(references), count)


def compare(answer: Array, reference: Array, cases: int = 1) -> Parity:
    """All figures for two arrays of one shape."""
    answer, reference = answer.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    error = answer - reference
    noise, signal = float(error @ error), float(reference @ reference)
    span = float(reference.max() - reference.min()) or 1.0
    lengths = math.sqrt(signal * float(answer @ answer))
    return Parity(
        snr_db=_decibels(signal, noise),
        cosine=float(answer @ reference) / lengths if lengths else float(signal == 0.0),
        max_abs_error=float(np.abs(error).max()),
        psnr_db=_decibels(span**2, noise / error.size),
        cases=cases,
    )


def _decibels(signal: float, noise: float) -> float:
    """Ratio in decibels, at most 200: JSON knows no infinity."""
    if math.isnan(noise):
        return math.nan
    return min(200.0, 10.0 * math.log10(max(signal, 1e-300) / max(noise, 1e-300)))


def _main(arguments: list[str]) -> None:
    measured = {}
    for argument in arguments:
        name, path = argument.split("=", 1)
        figures = asdict(measure(Path(path)))
        measured[name] = {key: float(f"{value:.4g}") for key, value in figures.items()}
    print(json.dumps(measured))


if __name__ == "__main__":
    _main(sys.argv[1:])
