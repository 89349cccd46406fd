"""Which stage learns on what another one made, and what follows when that one learns on.

Knows names, records and settings, not how anything is learned (docs/decisions/0029).
"""

import shlex
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from storyv_lite.config import STAGES, TrainConfig
from storyv_lite.errors import BundleError, ConfigError
from storyv_lite.modeling.checkpoints import record_stage, stage_record
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
                where = f"--preset {config.preset} -o {shlex.quote(str(out))}"
                raise BundleError(
                    f"`{stage}` learns on what `{need}` makes, which is not finished in `{out}`",
                    hint=f"storyv-lite train --stage {need} {where}",
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
        steps = stage_record(out, stage).get("steps", 0)
        behind = stage in changed or is_behind(stage_record(out, stage))
        if behind and getattr(config, stage).max_train_steps <= steps:
            raise ConfigError(
                f"`{stage}` has to learn on behind what it needs, in more than its {steps} steps",
                hint=f"--set {stage}.max_train_steps={steps + max(1, steps // 4)}",
            )


def leave_behind(config: TrainConfig, out: Path, stage: str) -> None:
    """Note that stages which learned on what `stage` will change are not done, however many steps they have.

    They go on with their weights alone: the state of one holds what the other is about to change.
    """
    for later in _begun_after(config, out, stage):
        record = stage_record(out, later)
        record_stage(out, later, {**record, "max_train_steps": record["steps"], "done": False})
        shutil.rmtree(out / "state" / later, ignore_errors=True)


def is_behind(record: dict[str, Any]) -> bool:
    """Whether a stage had all its steps and is not done, since one that it needs learned on."""
    return bool(record) and not record["done"] and record["steps"] >= record["max_train_steps"]


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
