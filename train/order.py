"""Which stage learns on what another one made, and what follows when that one learns on.

Knows names, records and settings, not how anything is learned (docs/decisions/0029).
"""

import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from storyv_lite.checkpoint import is_behind, steps_to_catch_up
from storyv_lite.config import STAGES, TrainConfig
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.modeling.checkpoints import record_stage, stage_record
from storyv_lite.presets import as_dict, train_command
from storyv_lite.train.char_ldm import conditioning_steps

NEEDS: dict[str, tuple[str, ...]] = {
    "autoencoder": (),
    "image_text": (),
    "story_lm": (),
    "char_ldm": ("autoencoder", "image_text"),
    "align": ("image_text", "story_lm", "char_ldm"),
    "judge": ("autoencoder",),
}
FOLLOWED = ("story_lm", "char_ldm")  # what needs them learns on after them; the others are left as they are


def refuse_disorder(config: TrainConfig, out: Path, asked: Collection[str], wanted: Sequence[str]) -> None:
    """Raise where training what is `wanted` of the stages `asked` for would spoil what is there.

    `BundleError` when a stage that one needs is not done; `ConfigError` when one would learn on that others
    have learned on, or when one that has to learn on behind another is given no steps for it.
    """
    for stage in wanted:
        for need in NEEDS[stage]:
            if need not in wanted and not _usable(config, out, need):
                raise BundleError(
                    f"`{stage}` learns on what `{need}` makes, which is not finished in `{out}`",
                    hint=train_command(config.preset, as_dict(config), out, need),
                )
        later = _begun_after(config, out, stage)
        if later and stage not in FOLLOWED:
            kept = f"--set {stage}.max_train_steps={stage_record(out, stage).get('steps', 0)}"
            raise ConfigError(
                f"`{stage}` would learn on, and `{later[0]}` has learned on what it made",
                hint=f"name another folder with `-o`, or leave it as it is: {kept}",
            )
    changed = {later for stage in wanted for later in _begun_after(config, out, stage)}
    for stage in asked:
        record = stage_record(out, stage)
        steps = record.get("steps", 0)
        if (stage in changed or is_behind(record)) and getattr(config, stage).max_train_steps <= steps:
            raise ConfigError(
                f"`{stage}` has to learn on behind what it needs, in more than its {steps} steps",
                hint=f"--set {stage}.max_train_steps={steps_to_catch_up(record)}",
            )


@contextmanager
def leaving_behind(config: TrainConfig, out: Path, stage: str) -> Iterator[None]:
    """While `stage` learns, those that learned on what it changes are noted as behind.

    They go on with their weights alone: the state of one holds what the other changes. Where `stage` ends
    before it saved any weights, they are again what they were.
    """
    noted = {later: stage_record(out, later) for later in _begun_after(config, out, stage)}
    before = _weights(out)
    for later, record in noted.items():
        record_stage(out, later, {**record, "max_train_steps": record["steps"], "done": False})
        kept = _aside(out, later)
        shutil.rmtree(kept, ignore_errors=True)  # of a training that was killed
        if kept.with_name(later).exists():
            kept.with_name(later).rename(kept)
    try:
        yield
    finally:
        unchanged = _weights(out) == before
        for later, record in noted.items():
            kept = _aside(out, later)
            if unchanged:
                record_stage(out, later, record)
                if kept.exists():
                    kept.rename(kept.with_name(later))
            shutil.rmtree(kept, ignore_errors=True)


def _aside(out: Path, stage: str) -> Path:
    return out / "state" / f".{stage}"


def _weights(out: Path) -> dict[str, int]:
    """When each component of a checkpoint was last written."""
    return {str(file): file.stat().st_mtime_ns for file in sorted(out.glob("[!.]*/*.safetensors"))}


def _begun_after(config: TrainConfig, out: Path, stage: str) -> list[str]:
    """The stages that have begun to learn on what `stage` changes if it learns now."""
    if _rests(config, out, stage):
        return []
    return [later for later in STAGES if stage in NEEDS[later] and stage_record(out, later).get("steps")]


def _rests(config: TrainConfig, out: Path, stage: str) -> bool:
    """Whether what others learn on stays as it is, however long `stage` goes on."""
    steps = stage_record(out, stage).get("steps", 0)
    if stage == "autoencoder":
        settings = config.autoencoder
        return bool(settings.latents_of) or steps >= int(settings.encoder_ratio * settings.max_train_steps)
    if stage == "char_ldm":
        return not config.align.diffusion_loss_scale and steps >= conditioning_steps(config.char_ldm)
    return False


def _usable(config: TrainConfig, out: Path, stage: str) -> bool:
    """Whether others may learn on what `stage` made; beside a UNet that learns alone, they may."""
    record = stage_record(out, stage)
    return bool(record.get("done") or (record and stage == "char_ldm" and _rests(config, out, stage)))
