"""All stages in order, and what a checkpoint holds beside the trained components.

Knows which recipe makes what and in which order; nothing about how. Every stage goes on where it stopped, so
running this again is always right.
"""

import importlib.metadata
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from storyv_lite.checks import TAKEN
from storyv_lite.components import Dimensions
from storyv_lite.config import STAGES, TrainConfig
from storyv_lite.errors import BackendError, ConfigError, OutputError
from storyv_lite.modeling.checkpoints import (
    read_checkpoint,
    record_stage,
    settle_checkpoint,
    stage_record,
    write_atomically,
    write_checkpoint,
    write_json,
)
from storyv_lite.presets import as_dict, load_config
from storyv_lite.train import align, autoencoder, char_ldm, image_text, judge, story_lm
from storyv_lite.train.data import data_version
from storyv_lite.train.loop import STOP
from storyv_lite.train.order import leaving_behind, refuse_disorder
from storyv_lite.train.parallel import check_processes
from storyv_lite.train.state import StageProgress
from storyv_lite.train.toonworld import corpus, draw
from storyv_lite.train.toonworld.cast import CAST
from storyv_lite.train.toonworld.dataset_files import character_card
from storyv_lite.train.toonworld.splits import story_seed
from storyv_lite.train.toonworld.stories import sample_story

Recipe = Callable[[TrainConfig, Path, str, float | None], bool]

RECIPES: dict[str, Recipe] = {
    "autoencoder": autoencoder.train,
    "image_text": image_text.train,
    "story_lm": story_lm.train,
    "char_ldm": char_ldm.train,
    "align": align.train,
    "judge": judge.train,
}
PACKAGES = ("torch", "transformers", "diffusers", "tokenizers", "numpy", "skia-python")
CALIBRATION_STORIES = 32
PORTRAIT_SIZE = 256


def run(
    preset: str = "toon",
    stages: Sequence[str] = STAGES,
    device: str = "auto",
    out: Path = Path("checkpoints/toon"),
    settings: Iterable[str] = (),
    minutes: float | None = None,
    file: Path | None = None,
) -> bool:
    """Train `stages` of a preset into `out`, each from where it stopped; true when all of them are complete.

    What it is trained with is the preset, changed by the TOML `file`, changed by `settings`.

    Raises `ConfigError` for unknown names, wrong settings, a folder that holds another model, or a stage that
    must not learn on; `BackendError` when the device cannot be had, `BundleError` when a stage that is needed
    is not finished.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ConfigError(f"there is no stage `{unknown[0]}`", hint=f"stages are {', '.join(STAGES)}")
    config, place = load_config(preset, file, settings), pick_device(device)
    refuse_other_model(config, out)
    wanted = [stage for stage in STAGES if stage in stages and not is_done(config, out, stage)]
    if not wanted:
        return True
    for stage in wanted:
        check_processes(stage, getattr(getattr(config, stage), "processes", 1), place)
    refuse_disorder(config, out, stages, wanted)
    settle_checkpoint(out)
    print(f"device: {place}{' (the best there is)' if device == 'auto' else ''}", file=sys.stderr)
    describe(config, out)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    for stage in wanted:
        left = None if deadline is None else (deadline - time.monotonic()) / 60
        if left is not None and left <= 0:
            break
        tell_settings(config, out, stage)
        with leaving_behind(config, out, stage):
            done = RECIPES[stage](config, out, place, left)
        if done and not is_done(config, out, stage):  # published weights were taken, nothing was trained
            record_stage(out, stage, asdict(StageProgress(done=True)))
        if stage == "story_lm":  # a published language model has sizes of its own
            write_checkpoint(out, {**read_checkpoint(out), "dimensions": dimensions(config, out).as_dict()})
        if not done or STOP.is_set():
            break
    return all(is_done(config, out, stage) for stage in stages)


def is_done(config: TrainConfig, out: Path, stage: str) -> bool:
    """Whether the stage was trained for as many steps as the configuration asks for, or its weights taken."""
    record, part = stage_record(out, stage), TAKEN.get(stage)
    taken = part is not None and getattr(config.model, part).pretrained
    return bool(record.get("done")) and (taken or record["steps"] >= getattr(config, stage).max_train_steps)


def pick_device(device: str) -> str:
    """`auto` is cuda where there is one. Raises `BackendError` when cuda is asked for and missing."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"there is no device `{device}`", hint="devices are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendError("`cuda` was asked for, this machine or this torch has none", hint="--device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def refuse_other_model(config: TrainConfig, out: Path) -> None:
    """Raise `ConfigError` when `out` holds a model of another seed or shape."""
    old, content = _stored(out), json.loads(json.dumps(as_dict(config)))
    for key in ("seed", "model"):
        if old.get("train_config", content)[key] != content[key]:
            raise ConfigError(
                f"`{out}` holds a checkpoint with another `{key}`", hint="name another folder with `-o`"
            )


def dimensions(config: TrainConfig, out: Path) -> Dimensions:
    """The configured shapes, but those of the language model that is stored in `out`, where there is one."""
    configured, file = config.model.dimensions(), out / "language_model" / "config.json"
    if not file.is_file():
        return configured
    stored = json.loads(file.read_text(encoding="utf-8"))
    heads = stored["num_attention_heads"]
    return replace(
        configured,
        vocab_size=stored["vocab_size"],
        hidden_size=stored["hidden_size"],
        num_hidden_layers=stored["num_hidden_layers"],
        num_key_value_heads=stored.get("num_key_value_heads") or heads,
        head_dim=stored.get("head_dim") or stored["hidden_size"] // heads,
        max_position_embeddings=stored["max_position_embeddings"],
    )


def describe(config: TrainConfig, out: Path) -> None:
    """Write what is known before training: cast, vocabulary, calibration stories, `checkpoint.json`.

    Stages that have begun keep the settings they were last trained with.
    Raises `OutputError` when `out` cannot be written.
    """
    old = _stored(out)
    try:
        (out / "state").mkdir(parents=True, exist_ok=True)
        (out / "state" / ".gitignore").write_text("*\n", encoding="utf-8")
    except OSError as fault:
        reason = (fault.strerror or str(fault)).lower()
        raise OutputError(
            f"`{out}` cannot be written: {reason}", hint="name another folder with `-o`"
        ) from fault
    _write_cast(out)
    write_json(out / "vocabulary.json", corpus.vocabulary())
    lines = "".join(json.dumps(_calibration(config.seed, i)) + "\n" for i in range(CALIBRATION_STORIES))
    write_atomically(out / "calibration.jsonl", lambda new: _write_text(new, lines))
    settings, begun = old.get("train_config", {}), old.get("stages", {})
    kept: dict[str, Any] = {name: old[name] for name in ("judge", "context") if name in old}
    facts: dict[str, Any] = {
        "preset": config.preset,
        "created": old.get("created") or datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "data_version": data_version(),
        "dimensions": dimensions(config, out).as_dict(),
        "stages": begun,
        "command": shlex.join(["storyv-lite", *sys.argv[1:]]),
        "git_revision": _git_revision(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "sampler": _sampler(config),
        "merge_step": _merge_step(config),
        "first_frame": "char_ldm",
        "train_config": as_dict(config) | {stage: settings[stage] for stage in begun if stage in settings},
        **kept,
    }
    write_checkpoint(out, facts)


def tell_settings(config: TrainConfig, out: Path, stage: str) -> None:
    """Write the settings that `stage` is about to be trained with into `checkpoint.json`."""
    content = read_checkpoint(out)
    settings = content["train_config"] | {stage: as_dict(config)[stage]}
    write_checkpoint(out, content | {"train_config": settings})


def _stored(out: Path) -> dict[str, Any]:
    return read_checkpoint(out) if (out / "checkpoint.json").is_file() else {}


def _sampler(config: TrainConfig) -> dict[str, Any]:
    """What the model is drawn with unless the user says otherwise (the paper's: specification A.6)."""
    if config.model.unet.pretrained:
        return {
            "name": "plms",
            "num_inference_steps": 30,
            "guidance_scale": 5.0,
            "timestep_spacing": "leading",
        }
    return {
        "name": "dpmsolver++",
        "num_inference_steps": 12,
        "guidance_scale": 3.0,
        "timestep_spacing": "trailing",
    }


def _merge_step(config: TrainConfig) -> dict[str, int]:
    """Up to which evaluation the caption is shown by itself (specification A.6, D.3); -1: never."""
    if config.model.unet.pretrained:
        return {"reference": 0, "named": 15}
    return {"reference": -1, "named": -1}  # "Luna joins him" names one of two, and no place


def _write_cast(out: Path) -> None:
    folder = out / "characters"
    folder.mkdir(parents=True, exist_ok=True)
    for who in CAST:
        write_json(folder / f"{who.name}.json", character_card(who))
        portrait = Image.fromarray(draw.portrait(who.name, PORTRAIT_SIZE))
        write_atomically(folder / f"{who.name}.png", lambda new, p=portrait: p.save(new, "PNG"))  # type: ignore[misc]


def _calibration(seed: int, index: int) -> dict[str, Any]:
    story = sample_story(story_seed("validation", seed, index), 3 + index % 6, "validation")
    return {
        "seed": story.seed,
        "captions": [frame.reference for frame in story.frames],
        "original": [frame.original for frame in story.frames],
        "characters": [list(frame.names) for frame in story.frames],
    }


def _git_revision() -> str:
    """The revision of this project's checkout; empty where it is not one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return found.stdout.strip()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
