"""What a manifest says, as data: the records of a bundle, and how each is read from JSON.

Pure: knows fields and their types, no file. What reads a record raises `KeyError` for a field that is not
there, and `TypeError`, `ValueError` or `AttributeError` for one that is something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from storyv_lite.components import Dimensions

FIRST_FRAMES = ("language_model", "char_ldm")

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: path relative to its folder, size, and SHA-256 in hexadecimal."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One graph (or table) and its external data, if any; `bytes` counts both."""

    file: str
    bytes: int
    sha256: str
    data: str | None = None
    data_sha256: str | None = None


@dataclass(frozen=True)
class Variant:
    """One form of a component: how it was quantized, what runs it, its parts in order."""

    scheme: str
    backend: str  # "onnx" | "table" | "tensorrt" | "tensorrt-rtx"
    parts: tuple[Part, ...]
    parity: Mapping[str, Any]
    weights: Mapping[str, Any] = field(default_factory=dict)  # see coverage.py; older bundles do not say
    engine: Mapping[str, Any] | None = None  # of the last two: what the engine was built from and for
    work: Mapping[str, int] | None = None  # bytes at work, by cells per side (decoder) or count; see work.py


@dataclass(frozen=True)
class Character:
    """One member of the cast the model knows."""

    name: str
    kind: str
    pronoun: str
    description: str
    aliases: tuple[str, ...]
    portrait: FileEntry


@dataclass(frozen=True)
class Sampler:
    """The sampler the model was tuned for; every value is a default that a caller may replace."""

    name: str
    num_inference_steps: int
    guidance_scale: float
    timestep_spacing: str


@dataclass(frozen=True)
class Context:
    """The longest context the story model was trained for: tokens, and frames counting the one to draw."""

    tokens: int
    frames: int


@dataclass(frozen=True)
class MergeStep:
    """Last evaluation that sees the plain caption alone, -1 for none; by whether a caption refers back."""

    reference: int
    named: int


@dataclass(frozen=True)
class Model:
    """What the runtime must know of the model and hard-codes nowhere."""

    dimensions: Dimensions
    bos_token_id: int  # stands once, before everything the language model reads
    prediction_type: str
    scheduler: Mapping[str, Any]
    sampler: Sampler
    merge_step: MergeStep
    first_frame: str  # who draws frame 1: "language_model" | "char_ldm"
    context: Context


@dataclass(frozen=True)
class Degraded:
    """A figure of the parity gate beyond its limit."""

    component: str
    metric: str
    value: float
    limit: float


def read_model(record: Mapping[str, Any]) -> Model:
    """What a manifest says of the model."""
    if (first := record["first_frame"]) not in FIRST_FRAMES:
        raise ValueError(f"`first_frame` is `{first}`, one of {', '.join(FIRST_FRAMES)} is needed")
    return Model(
        dimensions=read_record(Dimensions, record["dimensions"]),
        bos_token_id=_bos_token_id(record),
        prediction_type=str(record["prediction_type"]),
        scheduler=dict(record["scheduler"]),
        sampler=read_record(Sampler, record["sampler"]),
        merge_step=read_record(MergeStep, record["merge_step"]),
        first_frame=first,
        context=read_record(Context, record["context"]),
    )


def read_variant(record: Mapping[str, Any]) -> Variant:
    """One form of a component; the fields that older manifests lack are empty."""
    parts = tuple(read_record(Part, part) for part in record["parts"])
    parity, weights = dict(record.get("parity") or {}), dict(record.get("weights") or {})
    engine = None if record.get("engine") is None else dict(record["engine"])
    work = {str(int(n)): int(size) for n, size in (record.get("work") or {}).items()} or None
    return Variant(str(record["scheme"]), str(record["backend"]), parts, parity, weights, engine, work)


def read_character(record: Mapping[str, Any]) -> Character:
    """One member of the cast."""
    portrait = read_record(FileEntry, record["portrait"])
    return read_record(Character, {**record, "aliases": tuple(record["aliases"]), "portrait": portrait})


def read_record(kind: type[T], record: Mapping[str, Any]) -> T:
    """Build a dataclass from a JSON object; keys it does not know belong to other readers."""
    known = {f.name: f.type for f in fields(kind) if f.name in record}  # type: ignore[arg-type]
    for name, wanted in known.items():
        accepted = (int, float) if wanted is float else wanted
        if wanted in (int, float, str) and not isinstance(record[name], accepted):  # type: ignore[arg-type]
            raise ValueError(f"`{name}` is `{record[name]!r}`, a value of type {wanted.__name__} is needed")
    return kind(**{name: record[name] for name in known})


def _bos_token_id(model: Mapping[str, Any]) -> int:
    found, rows = model["bos_token_id"], model["dimensions"]["vocab_size"]
    if not isinstance(found, int) or not 0 <= found < rows:
        raise ValueError(f"`bos_token_id` is `{found!r}`, a row of the token table's {rows} is needed")
    return found
