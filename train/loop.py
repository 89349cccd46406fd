"""The training loop as functions: seeds, schedule, moving average, checkpoints, resume, progress.

Knows how to train a few modules for a number of steps, not what they are. Everything random in step n is a
function of (seed, stage, n), so an exact resume needs weights and optimizer moments, no generator states.
"""

import json
import math
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn

from storyv_lite.config import StageConfig
from storyv_lite.errors import ConfigError
from storyv_lite.memory import keep_freed_memory
from storyv_lite.modeling.checkpoints import (
    has_component,
    load_weights,
    record_stage,
    save_component,
    stage_record,
)
from storyv_lite.train.graphs import StepGraph
from storyv_lite.train.state import StageProgress, read_state, restore, write_state
from storyv_lite.train.workers import prefetched

SKIPPED = "skipped"  # figure: steps since the line before whose gradients were no numbers
STOP = threading.Event()  # set by SIGTERM or Ctrl-C during a stage: no other stage should begin


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """The generator that everything random about the data of one step is drawn from."""
    return np.random.default_rng([seed, crc32(stage.encode()), step])


def seed_step(seed: int, stage: str, step: int) -> None:
    """Set the global generators (python, numpy, torch) for one step."""
    state = step_rng(seed, stage + "/global", step).integers(2**31)
    random.seed(int(state))
    np.random.seed(int(state))
    torch.manual_seed(int(state))


def learning_rate(settings: StageConfig, step: int, resumed_at: int | None = None) -> float:
    """Warm-up and cosine decay as a part of `settings.learning_rate`; a warm resume warms up once more."""
    warmup = max(1, settings.lr_warmup_steps)
    progress = min(1.0, step / max(1, settings.max_train_steps))
    cosine = settings.lr_min_ratio + (1 - settings.lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    factor = cosine * min(1.0, (step + 1) / warmup)
    if resumed_at is not None:
        factor *= min(1.0, (step - resumed_at + 1) / min(100, warmup))
    return settings.learning_rate * factor


def parameter_groups(
    modules: Sequence[nn.Module], weight_decay: float, lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Optimizer groups of everything that learns: matrices decay; biases, norms and single vectors do not."""
    learned = [p for module in modules for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay, "lr_scale": lr_scale},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0, "lr_scale": lr_scale},
    ]


def precision(settings: StageConfig, device: torch.device) -> str:
    """`bf16` or `no`, as accelerate spells them; `auto` takes bf16 where the processor computes in it."""
    if settings.mixed_precision != "auto":
        return settings.mixed_precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    if device.type != "cpu":
        return "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def helper_autocast(settings: StageConfig) -> torch.autocast:
    """The precision that a gradient helper computes in: that of the loop itself, on a CPU."""
    mixed = precision(settings, torch.device("cpu")) == "bf16"
    return torch.autocast("cpu", torch.bfloat16, enabled=mixed)


def run_stage(
    stage: str,
    settings: StageConfig,
    components: Mapping[str, nn.Module],
    batches: Callable[[int], Any],
    compute_loss: Callable[[Any, int], Mapping[str, Tensor]],
    out: Path,
    *,
    seed: int,
    device: str = "cpu",
    minutes: float | None = None,
    extras: Mapping[str, nn.Module] | None = None,
    groups: list[dict[str, Any]] | None = None,
    sample: Callable[[Path], None] | None = None,
    finish: Callable[[], None] | None = None,
    phase: Callable[[int], object] | None = None,
) -> StageProgress:
    """Train `components` (stored as `out/NAME`) and `extras` (kept in `out/state`) until the stage is done.

    `batches(step)` is a pure function (use `step_rng`); `compute_loss(batch, step)` runs under autocast and
    returns scalars of which `loss` is minimised and all are logged; `sample(path)` draws a sample sheet, with
    the averaged weights and everything in evaluation mode; `finish` is called once after the last step, with
    the averaged weights, before the components are stored. `groups` are optimizer groups with `params`,
    `weight_decay` and `lr_scale` (default: all that requires a gradient). Only parameters that require a
    gradient are kept in the state. `phase(step)` says that steps differ in their batch and learning rate
    alone while it is the same, have one shape and read nothing back: CUDA then records them (graphs.py).

    Begins where `out/state/STAGE` ended (exact), else at the stored components with a short re-warm-up
    (warm), else at step 0. Stops early, saved, after `minutes` or at SIGTERM or Ctrl-C: look at `done`.
    On return the modules hold the averaged weights where `ema_decay` is set.
    """
    place = torch.device(device)
    keep_freed_memory()
    modules = {**components, **(extras or {})}
    for module in modules.values():
        module.to(place)
    progress, resumed_at = StageProgress(max_train_steps=settings.max_train_steps), None
    state = read_state(out / "state" / stage)
    if (
        state is None
        and (record := stage_record(out, stage))
        and all(has_component(out / c) for c in components)
    ):
        for name, module in components.items():
            load_weights(module, out / name)
        progress = replace(StageProgress(**record), max_train_steps=settings.max_train_steps)
        resumed_at = progress.steps
    learned = {f"{n}.{k}": p for n, m in modules.items() for k, p in m.named_parameters() if p.requires_grad}
    groups = groups or parameter_groups(list(modules.values()), settings.weight_decay)
    recorded = phase is not None and place.type == "cuda"
    optimizer = torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True, capturable=recorded
    )
    average = [p.detach().clone() for p in learned.values()] if settings.ema_decay else []
    if state is not None:
        progress, resumed_at = restore(state, learned, optimizer, average, out / "state" / stage)
        progress = replace(progress, max_train_steps=settings.max_train_steps)
    for group in optimizer.param_groups if recorded else ():  # a number would be recorded as it is now
        group["lr"] = torch.tensor(settings.learning_rate, device=place)
    # One process has one accelerator state, so it always offers bf16 and each stage switches it on or off.
    offered = "bf16" if place.type in ("cpu", "cuda") else "no"
    accelerator = Accelerator(mixed_precision=offered, cpu=place.type == "cpu")
    mixed = AutocastKwargs(enabled=precision(settings, place) == "bf16", cache_enabled=not recorded)

    def work(batch: Any, step: int) -> dict[str, Tensor]:
        optimizer.zero_grad(set_to_none=True)
        with accelerator.autocast(mixed):
            losses = compute_loss(batch, step)
        accelerator.backward(losses["loss"])
        norm = nn.utils.clip_grad_norm_(learned.values(), settings.max_grad_norm)
        skip = (~norm.isfinite()).float()
        vars(optimizer)["found_inf"] = skip  # a fused step then leaves weights and moments as they are
        optimizer.step()
        return {**{name: value.detach() for name, value in losses.items()}, "grad_norm": norm, SKIPPED: skip}

    graph = StepGraph(work, place) if recorded else None

    def save(progress: StageProgress) -> None:
        with _averaged(learned, average):
            if progress.done and finish is not None:
                with _evaluated(modules.values()):
                    finish()
            for name, module in components.items():
                save_component(module, out / name)
        write_state(out / "state" / stage, progress, resumed_at, learned, optimizer, average)
        record_stage(out, stage, asdict(progress))

    def draw(step: int) -> None:
        path = out / "samples" / f"{stage}-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with _averaged(learned, average), _evaluated(modules.values()), torch.no_grad():
            seed_step(seed, stage + "/sample", 0)
            if sample is not None:
                sample(path)

    for module in modules.values():
        module.train()
    record = stage_record(out, stage)
    recorded_done = record.get("done") and record["steps"] >= settings.max_train_steps
    if progress.steps >= settings.max_train_steps and not recorded_done:  # fewer are wanted now, or a kill
        progress = replace(progress, done=True)
        save(progress)
    began, spent = time.monotonic(), progress.seconds
    since, logged, skipped = progress.steps, began, torch.zeros((), device=place)
    with (
        _stop_signal() as stopped,
        prefetched(batches, range(progress.steps, settings.max_train_steps), place) as fetch,
    ):
        while progress.steps < settings.max_train_steps:
            step = progress.steps
            batch = fetch(step)
            seed_step(seed, stage, step)
            rate = learning_rate(settings, step, resumed_at)
            for group in optimizer.param_groups:
                _set(group, "lr", rate * group.get("lr_scale", 1.0))
            losses = graph(batch, step, phase(step)) if graph and phase else work(batch, step)
            skipped += losses[SKIPPED]
            if average:
                decay = min(settings.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(average, [p.detach() for p in learned.values()], 1 - decay)
            now = time.monotonic()
            done = step + 1 >= settings.max_train_steps
            progress = replace(
                progress,
                steps=step + 1,
                samples=progress.samples + settings.train_batch_size,
                seconds=round(spent + now - began, 3),
                done=done,
            )
            leave = done or stopped.is_set() or (minutes is not None and now - began >= 60 * minutes)
            keep = leave or progress.steps % settings.checkpointing_steps == 0
            if keep or progress.steps % settings.log_steps == 0:
                values = {name: float(value) for name, value in {**losses, SKIPPED: skipped}.items()}
                _refuse_divergence(stage, values["loss"], int(skipped), since, progress.steps, settings)
                speed = (progress.steps - since) * settings.train_batch_size / max(1e-9, now - logged)
                _log(out, stage, progress, {**values, "lr": rate}, speed, settings)
                since, logged, skipped = progress.steps, now, torch.zeros_like(skipped)
            if keep:
                save(progress)
            if sample is not None and (done or progress.steps % settings.sample_steps == 0):
                draw(progress.steps)
            if leave:
                break
    if average:
        for parameter, mean in zip(learned.values(), average, strict=True):
            parameter.data.copy_(mean)
    for module in modules.values():
        module.eval()
    return progress


def _refuse_divergence(
    stage: str, loss: float, skipped: int, since: int, step: int, settings: StageConfig
) -> None:
    """Raise `ConfigError` where no step since `since` had gradients that are numbers."""
    if skipped == step - since:
        raise ConfigError(
            f"`{stage}` diverged between steps {since} and {step}: its loss is {loss}, all gradients of "
            f"{skipped} steps are no numbers; what was saved before is kept",
            hint=f"learn more slowly: --set {stage}.learning_rate={settings.learning_rate / 2:g}",
        )


def _set(group: dict[str, Any], name: str, value: float) -> None:
    """Set a number of an optimizer group where it stands: in a tensor, if it is one."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


@contextmanager
def _averaged(learned: Mapping[str, Tensor], average: Sequence[Tensor]) -> Iterator[None]:
    """Put the moving average in place of the weights for a while."""
    if not average:
        yield
        return
    kept = [p.detach().clone() for p in learned.values()]
    for parameter, mean in zip(learned.values(), average, strict=True):
        parameter.data.copy_(mean)
    try:
        yield
    finally:
        for parameter, value in zip(learned.values(), kept, strict=True):
            parameter.data.copy_(value)


@contextmanager
def _evaluated(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Everything in evaluation mode for a while."""
    for module in modules:
        module.eval()
    yield
    for module in modules:
        module.train()


@contextmanager
def _stop_signal() -> Iterator[threading.Event]:
    """Turn the first SIGTERM or Ctrl-C into an event; the second one interrupts as usual."""
    event = STOP
    event.clear()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, _: object) -> None:
        print("stopping after this step", file=sys.stderr)
        event.set()
        signal.signal(number, previous[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def append_metrics(out: Path, line: Mapping[str, Any]) -> None:
    """Add a line to the log of figures of a checkpoint folder."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _log(
    out: Path,
    stage: str,
    progress: StageProgress,
    values: Mapping[str, float],
    speed: float,
    settings: StageConfig,
) -> None:
    counted = {"samples_per_second": round(speed, 3), "seconds": progress.seconds}
    numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
    append_metrics(out, {"stage": stage, "step": progress.steps, **numbers, **counted})
    left = (settings.max_train_steps - progress.steps) * settings.train_batch_size / max(1e-9, speed)
    text = (
        f"{stage} {progress.steps}/{settings.max_train_steps}  loss {values['loss']:.4f}  "
        f"{speed:.1f} samples/s  {int(left) // 60}:{int(left) % 60:02d} left"
    )
    on_terminal = sys.stderr.isatty()
    ending = "" if on_terminal and not progress.done else "\n"
    print(f"\r{text}\x1b[K" if on_terminal else text, end=ending, file=sys.stderr, flush=True)
