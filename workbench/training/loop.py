"""The training loop: SGD with Nesterov momentum, AGC and a cosine schedule.

Source: NFNet paper, section 4 and appendix A. AGC sees the gradient of the whole batch, once, after the last
micro-batch.
"""

import math
import platform
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pandas as pd
import torch

from workbench.bars import bar
from workbench.errors import WorkbenchError
from workbench.outcomes import DIVERGED, FINISHED, PRUNED, at_end
from workbench.training.assembly import Training
from workbench.training.cause import cause_of_evaluation, cause_of_step, gradient_norms
from workbench.training.checkpoint import Checkpoints, Resuming
from workbench.training.config import TrainConfig, TrainResult, code_hash, planned
from workbench.training.distributed import World, joined
from workbench.training.inputs import source
from workbench.training.observers import Observer
from workbench.training.scoring import evaluate, final_metrics, scores_at_end
from workbench.training.setup import pick_device, steps_of
from workbench.training.steering import Log, Pruning, Stopping
from workbench.weights.checkpoints import save_checkpoint

Tables = Callable[[str, pd.DataFrame], None]


@dataclass(frozen=True)
class Ending:
    """How the loop ended.

    Attributes:
        outcome: complete, collapsed, diverged or pruned.
        step: The last step, or the step that diverged.
        cause: Of a divergence or a collapse.
    """

    outcome: str
    step: int
    cause: str | None = None


def train(
    config: TrainConfig,
    log: Log | None = None,
    tables: Tables | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    save: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
    observers: Iterable[Observer] = (),
) -> TrainResult:
    """Train a configuration and return the result.

    On a CPU two runs of one configuration are equal bit for bit. If torchrun starts several processes, they share every
    batch. Each process returns the result, and only the first calls the functions below and writes files.

    A training diverges if the loss of a step is not finite or above 20 ln(classes), or if a gradient or a validation
    loss is not finite. It then ends before the update of that step, and the result has the step and the cause, see
    `cause_of_step`.

    A training collapses if its validation loss after all steps is at least 0.95 ln(classes), no better than guessing.

    Args:
        config: The configuration.
        log: Called with every history row when it is measured. If it returns True, the training ends with the outcome
            "pruned".
        tables: Called at the end with (name, table) for each table that the configuration measures. "agc" has one row
            per parameter and step (`telemetry_every`), "signal" one row per block and step (`signal_every`), and
            "curvature" one row per step (`curvature_every`).
        checkpoints: Where checkpoints are written. A training that was killed continues from its last checkpoint and
            gives exactly the same result. `log` then also gets the rows before the checkpoint.
        save: File (.safetensors) for the final weights, with the names of their classes and how to make their test
            images. The moving average is written next to it as NAME.ema.safetensors.
        stop: Called after every step except the last. If it returns True, a checkpoint is written (with `checkpoints`)
            and KeyboardInterrupt is raised. The next `train` continues after that step.
        observers: Called during the training.

    Returns:
        The result. A training that diverges or collapses is a result too, and raises no error.

    Raises:
        WorkbenchError: If the configuration does not fit its data, its device or the number of processes.
        KeyboardInterrupt: If `stop` returns True.
    """
    config = planned(config)
    data = source(config)
    world = World.from_environment()
    device = world.device(pick_device(config.device))
    total_steps = steps_of(config, len(data.train))
    if world.size > config.batch_size:
        raise WorkbenchError(
            f"`batch_size` must be at least the number of processes (={world.size}), got {config.batch_size}. "
            "Use at least one image per process."
        )
    if not world.first:
        log = tables = save = stop = None
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []
    with joined(world), torch.random.fork_rng(devices=devices):
        training = Training(config, data, world, device, total_steps, observers)
        resuming = Resuming(checkpoints, training.key, training, world)
        ending = _loop(training, resuming, Pruning(log, world, total_steps), Stopping(stop, world, total_steps))
        if save is not None and ending.outcome in FINISHED:
            _save_weights(training, save)
        if tables is not None:
            _hand_out_tables(training, ending, tables)
        return _result(training, ending)


def _loop(t: Training, resuming: Resuming, prunes: Pruning, stops: Stopping) -> Ending:
    done = resuming.latest()
    if t.history and prunes(*t.history):
        return Ending(PRUNED, done)
    if done == 0:
        for observer in t.observers:
            observer.begin(t.model)
    parameters = list(t.model.parameters())
    shown: dict[str, str] = {}
    with bar(t.total_steps, done=done, desc=t.config.name, unit="step", shown=t.config.progress) as counter:
        for step, parts in enumerate(t.inputs.steps(t.total_steps, done), start=done + 1):
            loss = t.gradients(parts)
            for observer in t.observers:
                observer.before_update(step, loss, t.model, t.update.optimizer)
            if t.losses.diverged(step, loss, gradient_norms(parameters), look=t.evaluates(step)):
                return _failed_step(t)
            lr = t.update(t.losses.failed)
            for observer in t.observers:
                observer.after_update(step, t.model, lr)
            if (latest := t.losses.latest()) is not None:
                shown["loss"] = f"{latest:.3f}"
            counter.set_postfix(shown, refresh=False)
            counter.update()

            if t.evaluates(step):
                scores = t.scores()
                if not t.world.agree(all(map(math.isfinite, scores.values()))):
                    return _failed_evaluation(t, step, scores)
                row = t.add_row(step, lr, scores)
                shown |= {"loss": f"{row['train_loss']:.3f}", "val": f"{row['val_acc']:.1%}"}
                counter.set_postfix(shown)
                if prunes(row):
                    return Ending(PRUNED, step)
            stopped = stops(step)
            resuming.write(step, now=stopped)
            if stopped:
                raise KeyboardInterrupt
    outcome, cause = at_end(t.history[-1]["val_loss"], len(t.data.classes))
    return Ending(outcome, t.total_steps, cause)


def _failed_step(t: Training) -> Ending:
    """Run the failed step again to find its cause. The weights are still those of that step."""
    step = t.losses.step
    parts = next(iter(t.inputs.steps(t.total_steps, step - 1)))
    return Ending(DIVERGED, step, cause_of_step(t.model, t.losses, lambda: t.gradients(parts), t.config.clip_eps))


def _failed_evaluation(t: Training, step: int, scores: dict[str, float]) -> Ending:
    """Run the failed evaluation again to find its cause.

    It is that of the average, if the loss of the weights is finite.
    """
    ema, model, loss = t.update.ema, t.model, scores["val_loss"]
    if ema is not None and math.isfinite(loss):
        model, loss = ema.model, scores["ema_val_loss"]
    return Ending(DIVERGED, step, cause_of_evaluation(model, step, loss, lambda: evaluate(model, t.inputs.val())))


def _save_weights(t: Training, file: str | Path) -> None:
    preprocess = t.inputs.preprocess.to_dict()
    file = save_checkpoint(t.model, file, preprocess)
    if t.update.ema is not None:
        save_checkpoint(t.update.ema.model, file.with_suffix(".ema.safetensors"), preprocess)


def _hand_out_tables(t: Training, ending: Ending, tables: Tables) -> None:
    """Pass on the measured tables. After a divergence they end before the failed step."""
    for measurement in t.measurements:
        table = measurement.table()
        tables(measurement.name, table.loc[table.step < ending.step] if ending.outcome == DIVERGED else table)


def _result(t: Training, ending: Ending) -> TrainResult:
    seconds, samples = t.seconds, ending.step * t.config.batch_size
    metrics = final_metrics(t.history, ending.outcome, ending.step, len(t.data.classes))
    if ending.outcome in FINISHED:
        metrics |= scores_at_end(t.model, t.update.ema, t.config, t.inputs)
    if t.inputs.unreadable:
        metrics["images_skipped"] = len(t.inputs.unreadable)
    metrics |= {
        "steps_planned": t.total_steps,
        "steps_done": ending.step,
        "samples_seen": samples,
        "device_seconds": seconds * t.world.size,
        "images_per_second": samples / seconds,
        "n_params": sum(p.numel() for p in t.model.parameters()),
        "depth": len(cast(Sized, t.model.blocks)),
    }
    on_gpu = t.device.type == "cuda"
    if on_gpu:
        metrics["peak_memory"] = torch.cuda.max_memory_allocated(t.device)
    return TrainResult(
        key=t.key,
        config=t.config,
        outcome=ending.outcome,
        history=t.history,
        metrics=metrics,
        cause=ending.cause,
        seconds=seconds,
        device=torch.cuda.get_device_name(t.device) if on_gpu else f"{t.device.type} {platform.machine()}",
        versions={"torch": torch.__version__, "python": platform.python_version()},
        data_digest=t.data.digest,
        code=code_hash(),
        layout=t.layout,
    )
