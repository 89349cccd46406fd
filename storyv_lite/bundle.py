"""The bundle: the folder `export` writes and `runtime` reads, and its index `manifest.json`.

Knows the format, its schema version, its paths and its hashes; not how a component is made or run.
A bundle comes from a stranger: no file is touched before its path is known to lie inside the folder and to be
no link, and none is used before its size and hash are the manifest's.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from storyv_lite.components import Component, Signature
from storyv_lite.errors import BundleError, OutputError
from storyv_lite.manifest import (
    Character,
    Degraded,
    FileEntry,
    Model,
    Part,
    Variant,
    read_character,
    read_model,
    read_record,
    read_variant,
)

SCHEMA = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
PACKAGED = Path(__file__).parent / "bundles" / "toon"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: everything in it is where the manifest says and, when verified, what it says."""

    path: Path
    name: str
    sha256: str  # of manifest.json, which holds the hash of everything else
    model: Model
    components: Mapping[Component, tuple[Variant, ...]]
    tokenizers: Mapping[str, FileEntry]
    characters: tuple[Character, ...]
    vocabulary_file: FileEntry
    provenance: Mapping[str, Any]
    parity: Mapping[str, float]  # of whole stories against full precision; empty where not measured
    mixture: Mapping[str, Any]  # how the widths of its layers were chosen; empty where a scheme said
    degraded: tuple[Degraded, ...]  # what missed its limit and was kept all the same

    @classmethod
    def open(cls, path: Path, verify: bool = True) -> "Bundle":
        """Read a bundle's manifest; `verify` also compares size and hash of every file.

        Raises `BundleError` for a missing, damaged, unsafe or too new bundle.
        """
        manifest, digest = _read_manifest(path)
        bundle = parse_manifest(path / MANIFEST, manifest, digest)
        for entry in bundle.files():
            checked = bundle.file(entry.file)
            if verify:
                _verify(checked, entry)
        return bundle

    def file(self, relative: str) -> Path:
        """The path of one file of the bundle. Raises `BundleError` when it is outside, a link or missing."""
        pure = PurePosixPath(relative)
        windows = PureWindowsPath(relative)
        if not relative or pure.is_absolute() or windows.drive or "\\" in relative or ".." in pure.parts:
            raise BundleError(
                f"`{relative}` in `{self.path / MANIFEST}` leaves the bundle", hint=_DO_NOT_TRUST
            )
        found = self.path
        for part in pure.parts:
            found = found / part
            if found.is_symlink():
                raise BundleError(f"`{found}` is a link; a bundle holds plain files only", hint=_DO_NOT_TRUST)
        if not found.is_file():
            raise BundleError(f"`{found}` is missing from the bundle", hint=_EXPORT_AGAIN)
        return found

    def files(self) -> tuple[FileEntry, ...]:
        """Every file the manifest names; sizes of a part's graph and data are checked together, by hash."""
        parts = [part for variants in self.components.values() for v in variants for part in v.parts]
        graphs = [FileEntry(part.file, -1 if part.data else part.bytes, part.sha256) for part in parts]
        data = [FileEntry(part.data, -1, part.data_sha256 or "") for part in parts if part.data]
        portraits = [character.portrait for character in self.characters]
        return (*graphs, *data, *self.tokenizers.values(), *portraits, self.vocabulary_file)

    def variant(self, component: Component, backend: str = "onnx") -> Variant:
        """The first form of a component that `backend` runs. Raises `BundleError` when there is none."""
        variants = self.components.get(component, ())
        for variant in variants:
            if variant.backend == backend:
                return variant
        found = ", ".join(f"`{v.scheme}` for {v.backend}" for v in variants) or "nothing"
        raise BundleError(
            f"`{self.path}` has {found} for `{component}`; one for `{backend}` is needed", hint=_EXPORT_AGAIN
        )

    def tokenizer(self, name: str) -> Path:
        """The tokenizer.json of `text_encoder` or `language_model`."""
        if name not in self.tokenizers:
            raise BundleError(f"`{self.path / MANIFEST}` names no tokenizer for `{name}`", hint=_EXPORT_AGAIN)
        return self.file(self.tokenizers[name].file)

    @cached_property
    def vocabulary(self) -> Mapping[str, tuple[str, ...]]:
        """What the model knows, for warnings: characters, places, actions, props, words (lower case).

        Raises `BundleError`.
        """
        file = self.file(self.vocabulary_file.file)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return {str(kind): tuple(map(str, entries)) for kind, entries in content.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as fault:
            raise BundleError(f"`{file}` is no vocabulary: {fault}", hint=_EXPORT_AGAIN) from fault

    @property
    def total_bytes(self) -> int:
        """Size of all files of the bundle on disk, the manifest included."""
        names = {entry.file for entry in self.files()} | {MANIFEST}
        return sum((self.path / name).stat().st_size for name in names)


_EXPORT_AGAIN = "write it again with `storyv-lite export`"
_DO_NOT_TRUST = "do not use this bundle; write your own with `storyv-lite export`"


def find_bundle(name_or_path: str | Path | None = None, folder: Path | None = None) -> tuple[Path, str]:
    """The bundle to draw with, and why that one: the one asked for, else the newest of `./bundles`, or ours.

    A name means `./bundles/NAME`, or the packaged bundle of that name. Only the current folder (or `folder`)
    is searched. Raises `BundleError`.
    """
    here = Path.cwd() if folder is None else folder
    written = here / "bundles"
    if name_or_path is not None:
        places = (here / name_or_path, written / name_or_path, PACKAGED.parent / name_or_path)
        for place in places:
            if (place / MANIFEST).is_file():
                return place, "asked for"
        names = sorted(
            {file.parent.name for place in places[1:] for file in place.parent.glob(f"*/{MANIFEST}")}
        )
        raise BundleError(
            f"`{name_or_path}` is no bundle: there is no `{here / name_or_path / MANIFEST}`",
            hint="name a folder that `storyv-lite export` wrote"
            + (f", or one of these: {', '.join(names)}" if names else ""),
        )
    manifests = list(written.glob(f"*/{MANIFEST}"))
    if manifests:
        newest = max(manifests, key=lambda file: (file.stat().st_mtime_ns, file.parent.name))
        return newest.parent, "the newest in ./bundles"
    if (PACKAGED / MANIFEST).is_file():
        return PACKAGED, "the one that ships with storyv-lite"
    raise BundleError(
        "there is no bundle in `./bundles` and none ships with this installation",
        hint="make one with `storyv-lite train` and then `storyv-lite export --int4`",
    )


def refuse_taken(out: Path, force: bool) -> None:
    """Raise `OutputError` where no bundle can be put in place; `force` replaces one, and nothing else."""
    if not os.path.lexists(out) or (force and (out / MANIFEST).is_file()):
        return
    if not force:
        raise OutputError(f"`{out}` exists", "name another folder with `-o`, or give `--force`")
    if not out.is_dir() or any(out.iterdir()):
        raise OutputError(
            f"`{out}` is no bundle, and `--force` replaces only a bundle", "name another folder with `-o`"
        )


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_entry(folder: Path, relative: str) -> FileEntry:
    """Describe one written file for the manifest."""
    path = folder / relative
    return FileEntry(relative, path.stat().st_size, hash_file(path))


def part_entry(folder: Path, file: str, data: str | None = None) -> Part:
    """Describe one written graph, and its external data if it has any, for the manifest."""
    graph = file_entry(folder, file)
    if data is None:
        return Part(file, graph.bytes, graph.sha256)
    external = file_entry(folder, data)
    return Part(file, graph.bytes + external.bytes, graph.sha256, data, external.sha256)


def component_entry(signature: Signature, variants: tuple[Variant, ...]) -> dict[str, Any]:
    """The manifest's record of one component; `bytes` is the size of its first variant."""
    return {
        "bytes": sum(part.bytes for part in variants[0].parts),
        "signature": asdict(signature),
        "variants": list(map(variant_entry, variants)),
    }


def variant_entry(variant: Variant) -> dict[str, Any]:
    """The manifest's record of one variant; only an engine has the field `engine`."""
    return {name: value for name, value in asdict(variant).items() if value is not None}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write `manifest.json`: sorted keys, so that equal contents give equal bytes; complete or not at all."""
    target = folder / MANIFEST
    temporary = folder / f".{MANIFEST}.part"
    text = json.dumps({"schema": SCHEMA, **manifest}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, target)
    return target


def parse_manifest(file: Path, manifest: Mapping[str, Any], sha256: str) -> Bundle:
    """The bundle that a manifest describes, read from `file` in the bundle's folder. Raises `BundleError`."""
    try:
        return _parse(file.parent, manifest, sha256)
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        reason = f"lacks {fault}" if isinstance(fault, KeyError) else f"is malformed: {fault}"
        raise BundleError(f"`{file}` {reason}", hint=_EXPORT_AGAIN) from fault


def _read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"`{path}` is no bundle: it has no `{MANIFEST}`",
            hint="name a folder that `storyv-lite export` wrote",
        )
    if file.is_symlink():
        raise BundleError(f"`{file}` is a link; a bundle holds plain files only", hint=_DO_NOT_TRUST)
    if file.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"`{file}` is larger than {MAX_MANIFEST_BYTES} bytes", hint=_EXPORT_AGAIN)
    content = file.read_bytes()
    try:
        manifest = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as fault:
        raise BundleError(f"`{file}` is not JSON: {fault}", hint=_EXPORT_AGAIN) from fault
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and not isinstance(schema, bool) and schema < SCHEMA:
        raise BundleError(
            f"`{file}` has schema {schema}, of an older version; {SCHEMA} is needed", hint=_EXPORT_AGAIN
        )
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleError(f"`{file}` has no schema version; {SCHEMA} is needed", hint=_EXPORT_AGAIN)
    if schema > SCHEMA:
        raise BundleError(
            f"`{file}` has schema {schema}; this version reads up to {SCHEMA}",
            hint="pip install --upgrade storyv-lite",
        )
    return manifest, hashlib.sha256(content).hexdigest()


def _parse(path: Path, manifest: Mapping[str, Any], digest: str) -> Bundle:
    components = {Component(name): record["variants"] for name, record in manifest["components"].items()}
    return Bundle(
        path=path,
        name=str(manifest["name"]),
        sha256=digest,
        model=read_model(manifest["model"]),
        components={name: tuple(map(read_variant, variants)) for name, variants in components.items()},
        tokenizers={name: read_record(FileEntry, entry) for name, entry in manifest["tokenizers"].items()},
        characters=tuple(map(read_character, manifest["characters"])),
        vocabulary_file=read_record(FileEntry, manifest["vocabulary"]),
        provenance=dict(manifest["provenance"]),
        parity=dict(manifest.get("parity") or {}),
        mixture=dict(manifest.get("mixture") or {}),
        degraded=tuple(read_record(Degraded, entry) for entry in manifest.get("degraded") or ()),
    )


def _verify(file: Path, entry: FileEntry) -> None:
    size = file.stat().st_size
    if entry.bytes >= 0 and size != entry.bytes:
        raise BundleError(f"`{file}` has {size} bytes, the manifest says {entry.bytes}", hint=_EXPORT_AGAIN)
    if hash_file(file) != entry.sha256:
        raise BundleError(
            f"`{file}` is not the file the manifest describes: its SHA-256 differs", hint=_EXPORT_AGAIN
        )
