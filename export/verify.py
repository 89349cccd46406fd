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
from storyv_lite.runtime.backends.ort import session_options

Array = NDArray[Any]
CASES = "cases.npz"  # inputs `I/in/NAME` and what the module answered, `I/out/NAME`, case by case


@dataclass(frozen=True)
class Limits:
    """The least that is let pass: of one component, and of stories drawn with components stored so."""

    snr_db: float
    image_states_cosine: float
    latent_cosine: float
    psnr_db: float


# Well below what trained weights reach, so that a broken layer is caught and a seed is not.
LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(80.0, 0.9999, 0.999, 40.0),
    "fp16": Limits(50.0, 0.999, 0.99, 30.0),
    "half": Limits(40.0, 0.999, 0.99, 30.0),
    "int8-weights": Limits(32.0, 0.98, 0.9, 18.0),
    "int8": Limits(15.0, 0.97, 0.8, 15.0),
    "int8-symmetric": Limits(15.0, 0.97, 0.8, 15.0),
    "int4-block32": Limits(10.0, 0.95, 0.8, 13.0),
    "mixed": Limits(10.0, 0.95, 0.8, 13.0),
}
STORY = "story"  # what failures of whole stories are counted under
NO_NUMBER = "NaN or infinity at"  # a layer: the metric of weights that no ratio can be taken of
_WIDER = "export with a wider scheme, `--fp16` or `--fp32`; `--allow-degraded` writes it all the same"


@dataclass(frozen=True)
class Failure:
    """One figure beyond its limit."""

    component: str
    metric: str
    value: float
    limit: float

    def __str__(self) -> str:
        if self.metric == "nan":
            return f"`{self.component}` answers with NaN, which is no number"
        if self.metric == "spread":
            return f"`{self.component}` answers with one constant"
        if self.metric.startswith(NO_NUMBER):
            return f"`{self.component}` has {self.metric}"
        return f"`{self.component}` has {self.metric} {self.value:.4g}; {self.limit:.4g} is needed"


@dataclass(frozen=True)
class Parity:
    """What was measured over all cases and outputs of one component."""

    snr_db: float  # energy of the answer over energy of the error
    cosine: float  # between answer and reference, all values in a row
    max_abs_error: float
    psnr_db: float  # against the range of the reference, as pictures are compared
    spread: float  # between the largest and the smallest number of the answer
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


def verify(folders: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Measure every component in one child process; the figures of each.

    `folders` maps a component to the folder of its graph and cases. Raises `ParityError` when a graph does
    not run or answers in another shape.
    """
    measured: dict[str, dict[str, float]]
    measured = run_child(__name__, [f"{name}={path}" for name, path in folders.items()])
    return measured


def run_child(module: str, arguments: list[str], given: str = "") -> Any:
    """What `python -m module` answers as the JSON in its last line. Raises `ParityError` when it fails."""
    import storyv_lite

    root = str(Path(storyv_lite.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": paths}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, input=given)
    if child.returncode != 0:
        last = (child.stderr.strip() or "no message").splitlines()[-1]
        raise ParityError(f"an exported graph does not run: {last}")
    return json.loads(child.stdout.splitlines()[-1])


def failures(
    components: Mapping[str, Mapping[str, float]], schemes: Mapping[str, str], story: Mapping[str, float]
) -> list[Failure]:
    """Every figure beyond the limit of its scheme; a story is held to the loosest of its components'."""
    found = []
    for name, figures in components.items():
        if math.isnan(figures["snr_db"]):
            found.append(Failure(name, "nan", 0.0, 0.0))
        elif figures["spread"] == 0:
            found.append(Failure(name, "spread", 0.0, 0.0))
        elif figures["snr_db"] < (limit := LIMITS[schemes[name]].snr_db):
            found.append(Failure(name, "snr_db", figures["snr_db"], limit))
    used = [LIMITS[scheme] for scheme in schemes.values()]
    for metric in ("image_states_cosine", "latent_cosine", "psnr_db"):
        limit = min(getattr(limits, metric) for limits in used)
        if metric in story and story[metric] < limit:
            found.append(Failure(STORY, metric, story[metric], limit))
    return found


def refuse(found: list[Failure], hint: str = _WIDER) -> None:
    """Raise `ParityError` naming component, metric, value and limit of every failure; nothing for none."""
    if found:
        raise ParityError("; ".join(map(str, found)), hint)


def measure(folder: Path) -> Parity:
    """Run the graph in `folder` on its cases. Raises `ParityError` for a wrong shape."""
    options = session_options(threads=1)  # as it is drawn with
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
    spread = float(answer.max() - answer.min()) if reference.max() > reference.min() else 1.0
    span = float(reference.max() - reference.min()) or 1.0
    lengths = math.sqrt(signal * float(answer @ answer))
    return Parity(
        snr_db=_decibels(signal, noise),
        cosine=float(answer @ reference) / lengths if lengths else float(signal == 0.0),
        max_abs_error=float(np.abs(error).max()),
        psnr_db=_decibels(span**2, noise / error.size),
        spread=spread,
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
