"""Habits that no linter knows."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("storyv_lite", "benchmarks", "export", "runtime", "train", "tests")
MODULES = [
    path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not any(parent.is_symlink() for parent in path.parents)
]
MAX_LINES = 400
UNPICKLERS = re.compile(
    r"\bimport pickle\b|torch\.load\(|allow_pickle=True|joblib\.load|yaml\.load\(|\beval\("
)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_fits_the_eye(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if source.strip() and "tests" not in path.relative_to(ROOT).parts:
        assert ast.get_docstring(ast.parse(source)), "has no docstring"
    assert len(source.splitlines()) <= MAX_LINES, "is longer than a reader's patience"


def test_nothing_is_ever_unpickled() -> None:
    guilty = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in MODULES
        if "tests" not in path.relative_to(ROOT).parts  # which make pickles to see them refused
        for match in UNPICKLERS.finditer(path.read_text(encoding="utf-8"))
        if not path.read_text(encoding="utf-8")[: match.start()].endswith(".")
    ]
    assert not guilty


def test_no_text_file_names_a_folder_of_somebody_s_machine() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    homes = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w+")
    guilty = []
    for name in listing.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.suffix in {
            ".py",
            ".md",
            ".toml",
            ".json",
            ".jsonl",
            ".txt",
            ".yaml",
            ".cfg",
            "",
        }:
            found = homes.search(path.read_text(encoding="utf-8", errors="ignore"))
            guilty += [f"{name}: {found.group()}"] if found else []
    assert not guilty
