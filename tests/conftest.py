"""Fixtures that every test may use: one tiny checkpoint and the bundles exported from it, once per run."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, chdir, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of random weights at the smallest useful size; do not write into it."""
    folder: Path = _beside("tiny").write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")
    return folder


@pytest.fixture
def recordable() -> AbstractContextManager[Any]:
    """A context in which work fails that a CUDA graph cannot hold."""
    mode: AbstractContextManager[Any] = _beside("recordable").Recordable()
    return mode


@pytest.fixture(scope="session")
def split_into_shards() -> Callable[[Path], None]:
    """Puts the weights of a component's folder into several files."""
    split: Callable[[Path], None] = _beside("tiny").split_into_shards
    return split


def _beside(name: str) -> ModuleType:
    """The module `name` of this folder, by its path: an installed package may be what is tested."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported as float32; do not write into it."""
    from storyv_lite.export.assemble import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny", scheme="fp32")


@pytest.fixture(scope="session")
def tiny_bundle_int8(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported as `storyv-lite export` does it; do not write into it."""
    from storyv_lite.export.assemble import export_checkpoint

    return export_checkpoint(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "tiny-int8")


@pytest.fixture(scope="session")
def tiny_judge(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny encoders and a judge that guesses; do not write into it."""
    import torch

    from storyv_lite.modeling.checkpoints import save_component
    from storyv_lite.train.judge import build

    folder = tmp_path_factory.mktemp("judged")
    for name in ("text_encoder", "vision_encoder", "tokenizers"):
        shutil.copytree(tiny_checkpoint / name, folder / name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_component(build(32, (16, 32), 1), folder / "judge")
    return folder


@pytest.fixture(scope="session")
def readable(tiny_bundle: Path) -> Callable[[int, int], int]:
    """The first seed whose so many unseen stories of so many frames the tiny model can read whole."""
    from storyv_lite.benchmarks.quality import unseen_stories
    from storyv_lite.runtime.pipeline import StoryPipeline

    model = StoryPipeline.from_bundle(tiny_bundle, "cpu", threads=1).model

    def fits(text: str) -> bool:
        return model.text_tokenizer.count(text) <= model.dims.text_tokens

    def find(stories: int, frames: int) -> int:
        return next(
            seed
            for seed in range(1000)
            if all(
                fits(frame.reference) and fits(frame.original)
                for story in unseen_stories(stories, frames, seed)
                for frame in story.frames
            )
        )

    return find


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[int, str, str]]:
    """`storyv-lite` in this process: exit code, what it answered, what it said beside that."""
    from typer.testing import CliRunner

    from storyv_lite.cli import app

    def call(*arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture(scope="session")
def done(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """A command that must succeed; what it said beside its answer."""

    def call(*arguments: object) -> str:
        code, _, err = run(*arguments)
        assert code == 0, err
        return err

    return call


@pytest.fixture(scope="session")
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """A command that must fail with a code and a hint; what it said."""

    def call(code: int, *arguments: object) -> str:
        found, out, err = run(*arguments)
        assert found == code, err
        assert out == "" and "\n\nhint: " in err
        return err

    return call


@pytest.fixture(scope="session")
def answer(run: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """A command that must succeed; its answer as JSON."""

    def call(*arguments: object) -> dict[str, Any]:
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return dict(json.loads(out.splitlines()[-1]))

    return call


@pytest.fixture(scope="module")
def drawn(
    request: pytest.FixtureRequest,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
    done: Callable[..., str],
) -> Path:
    """A folder with the tiny bundle and the `FILES` of the test module; do not write into it.

    Where the module says `DRAWN_WITH`, `day.txt` is drawn in `whole`, with these options.
    """
    place = tmp_path_factory.mktemp("drawn")
    shutil.copytree(tiny_bundle, place / "bundles/tiny")
    for name, text in request.module.FILES.items():
        (place / name).write_text(text)
    options = getattr(request.module, "DRAWN_WITH", None)
    if options is not None:
        with chdir(place):
            done("render", "day.txt", "-o", "whole", *options)
    return place


@pytest.fixture
def work(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of `drawn` to write into is the current folder."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A limit on the size of files, which stands for a full disk; it must not outlast what it is for."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited
