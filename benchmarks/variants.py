"""How a variant of the model is trained and judged: stage by stage, story by story, each where it stopped.

Knows which stage builds on which, and that two variants with the same settings for a stage share what it
makes; not which variants there are, and not what their figures mean.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from storyv_lite.benchmarks.judged import judge_missing, read_judged
from storyv_lite.benchmarks.quality import Evaluation, Likeness, unseen_stories
from storyv_lite.bundle import Bundle, hash_file
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.manifest import MergeStep
from storyv_lite.presets import load_config
from storyv_lite.runtime.backends import open_backend
from storyv_lite.runtime.pipeline import StoryPipeline

if TYPE_CHECKING:
    from storyv_lite.modeling.judge import Judge

NEVER = 1000  # a merge step that no sampler reaches: every evaluation sees the caption by itself
LOCAL = ("state", "samples")  # what belongs to one stage's own training
LENT = ("autoencoder", "language_model", "visual_projection", "mapper")  # by the checkpoint


@dataclass(frozen=True)
class Stage:
    """What a stage needs to be trained, and which settings change what it makes."""

    builds_on: tuple[str, ...]
    sections: tuple[str, ...]


STAGES = {
    "image_text": Stage((), ("image_text.",)),
    "char_ldm": Stage(("image_text",), ("char_ldm.",)),
    "story_lm": Stage((), ("story_lm.", "model.language.")),
    "align": Stage(("char_ldm", "story_lm"), ("align.", "model.language.")),
}


@dataclass(frozen=True)
class Variant:
    """One row: what is trained in which way, and on which captions, in which context, it is judged."""

    name: str  # of its folder
    title: str
    trained: str  # the last of its stages
    captions: str  # "original" | "references"
    context: str  # "interleaved" | "captions" | "none"
    settings: tuple[str, ...] = ()
    portraits: bool = True  # without, a caption is drawn by itself
    paper: float | None = None  # Char-Acc of this row in the paper, percent

    def stages(self) -> tuple[str, ...]:
        """All of its stages, each after those it builds on."""
        return tuple(dict.fromkeys(_with_parents(self.trained)))

    def settings_of(self, stage: str) -> tuple[str, ...]:
        """Those of its settings that change what `stage` makes, here or in a stage before it."""
        sections = tuple(section for name in _with_parents(stage) for section in STAGES[name].sections)
        return tuple(setting for setting in self.settings if setting.startswith(sections))


def _with_parents(stage: str) -> Iterable[str]:
    for parent in STAGES[stage].builds_on:
        yield from _with_parents(parent)
    yield stage


@dataclass(frozen=True)
class Workplace:
    """The folder all variants are trained and judged in, and what is the same for all of them."""

    out: Path
    checkpoint: Path  # lends its autoencoder, and what an export needs and a variant does not have
    variants: tuple[Variant, ...]
    preset: str
    settings: tuple[str, ...]  # the budget
    device: str
    frames: int
    seed: int
    deadline: float | None = None  # by `time.monotonic`

    def minutes_left(self) -> float | None:
        return None if self.deadline is None else (self.deadline - time.monotonic()) / 60

    def is_over(self) -> bool:
        left = self.minutes_left()
        return left is not None and left <= 0

    def home(self, variant: Variant, stage: str) -> Path:
        """Where a stage is trained: with the first variant that wants it trained like this."""
        wanted = variant.settings_of(stage)
        first = next(
            one for one in self.variants if stage in one.stages() and one.settings_of(stage) == wanted
        )
        return self.out / first.name / stage

    def begin(self, judge: Path) -> None:
        """Write down what all variants have in common.

        Raises `BundleError` for a checkpoint that cannot lend its parts, `ConfigError` where it does not fit
        the preset or `out` holds variants that do not fit these.
        """
        from storyv_lite.modeling.checkpoints import WEIGHTS, has_component, read_checkpoint, write_json

        for name in LENT:
            if not has_component(self.checkpoint / name):
                raise BundleError(f"`{self.checkpoint / name}` is missing", hint="--checkpoint FOLDER")
        config = load_config(self.preset, None, self.settings)
        if read_checkpoint(self.checkpoint)["dimensions"] != config.model.dimensions().as_dict():
            raise ConfigError(
                f"`{self.checkpoint}` has other dimensions than the preset `{self.preset}`",
                hint="give the checkpoint's own with --preset",
            )
        common = {
            "preset": self.preset,
            "settings": list(self.settings),
            "frames": self.frames,
            "seed": self.seed,
            "autoencoder": hash_file(self.checkpoint / "autoencoder" / WEIGHTS),
            "judge": hash_file(judge / WEIGHTS),
        }
        file = self.out / "common.json"
        stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else common
        if changed := [key for key in common if stored.get(key) != common[key]]:
            raise ConfigError(
                f"`{self.out}` holds variants with another `{changed[0]}`",
                hint="choose another folder with --out",
            )
        write_json(file, common)


def train(place: Workplace, variant: Variant, stage: str) -> bool:
    """Train a stage and those it builds on, unless that is done; false when the time is over first."""
    from storyv_lite.modeling.checkpoints import replace_folder
    from storyv_lite.train import recipes

    parents = STAGES[stage].builds_on
    if not all(train(place, variant, parent) for parent in parents):
        return False
    folder = place.home(variant, stage)
    if not (folder / "checkpoint.json").is_file():
        sources = [place.home(variant, parent) for parent in parents]
        replace_folder(folder, lambda new: _gather(new, stage, sources or [place.checkpoint]))
    if stage in ("image_text", "char_ldm"):
        _share_frames(place, folder)
    settings = (*place.settings, *variant.settings_of(stage))
    return recipes.run(place.preset, [stage], place.device, folder, settings, place.minutes_left())


def draw_and_judge(
    place: Workplace,
    variant: Variant,
    stories: int,
    judge: "Judge",
    likeness: Likeness | None,
    told: Callable[[str], None],
) -> bool:
    """Judge every story that is not judged yet; false when the time is over first."""
    return judge_missing(
        _judged(place, variant),
        unseen_stories(stories, place.frames, place.seed),
        lambda: _pipeline(place, variant, told),
        judge,
        likeness,
        variant.captions,
        variant.context,
        lambda text: told(f"{variant.name}: {text}"),
        place.is_over,
    )


def evaluation(place: Workplace, variant: Variant, stories: int) -> Evaluation | None:
    """Everything judged of a variant; None while a story is missing."""
    return read_judged(_judged(place, variant), unseen_stories(stories, place.frames, place.seed))


def spent(place: Workplace, variant: Variant) -> dict[str, dict[str, Any]]:
    """Steps, samples and seconds of each of its stages, whoever else shares them."""
    from storyv_lite.modeling.checkpoints import stage_record

    records = {stage: stage_record(place.home(variant, stage), stage) for stage in variant.stages()}
    return {
        stage: {key: record.get(key) for key in ("steps", "samples", "seconds")}
        for stage, record in records.items()
    }


def _gather(new: Path, stage: str, sources: Sequence[Path]) -> None:
    """Fill the folder a stage is trained in with what the stages before it left, and their records."""
    from storyv_lite.modeling.checkpoints import read_checkpoint, record_stage

    if stage == "story_lm":  # begins from nothing
        return
    kept = ("autoencoder",) if stage == "image_text" else ()
    for source in sources:
        for folder in sorted(path for path in source.iterdir() if path.is_dir()):
            if folder.name not in LOCAL and (not kept or folder.name in kept):
                shutil.copytree(folder, new / folder.name, dirs_exist_ok=True)
        for name, record in read_checkpoint(source).get("stages", {}).items():
            if not kept or name in kept:
                record_stage(new, name, record)


def _share_frames(place: Workplace, folder: Path) -> None:
    """Let all stages draw and encode every training frame once: they look into one folder."""
    from storyv_lite.train import autoencoder
    from storyv_lite.train.data import FrameSet
    from storyv_lite.train.latents import LatentSet

    config = load_config(place.preset, None, place.settings)
    drawn, encoded = place.out / "frames-train", place.out / "latents-train"
    links = {folder / "state" / shared.name: shared for shared in (drawn, encoded)}
    if all(link.is_symlink() for link in links):
        return
    frames = FrameSet.open_or_make(drawn, config.seed, config.data.frames, "train", config.model.image_size)
    LatentSet.open_or_make(encoded, frames, drawn, autoencoder.load(folder))
    (folder / "state").mkdir(exist_ok=True)
    for link, shared in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(shared.resolve(), target_is_directory=True)


def _pipeline(place: Workplace, variant: Variant, told: Callable[[str], None]) -> StoryPipeline:
    """The trained variant in full precision, ready to draw."""
    from storyv_lite.export.assemble import export_checkpoint

    folder = place.home(variant, variant.trained)
    path = folder.parent / f"{variant.trained}-bundle"
    if not path.is_dir():
        with TemporaryDirectory(prefix="storyv-lite-") as scratch:
            # A bundle holds every component. Those that a Char-LDM does not have are lent and never asked.
            for source in (place.checkpoint, folder):
                ignored = shutil.ignore_patterns("state", "samples", "judge")
                shutil.copytree(source, scratch, ignore=ignored, dirs_exist_ok=True)
            export_checkpoint(Path(scratch), path, "fp32", progress=told)
    bundle = Bundle.open(path)
    if not variant.portraits:
        bundle = replace(bundle, model=replace(bundle.model, merge_step=MergeStep(NEVER, NEVER)))
    return StoryPipeline(bundle, open_backend(place.device))


def _judged(place: Workplace, variant: Variant) -> Path:
    return place.out / variant.name / "judged"
