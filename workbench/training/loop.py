"""One straight training loop: SGD with Nesterov momentum, AGC, a cosine; the result is data.

Source: the NFNet paper's recipe, section 4 and appendix A. AGC sees the gradient of the whole batch, once, after its
last micro-batch.
"""

import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data import Dataset
from workbench.data.augment import seed_for
from workbench.data.folders import ImageFolder
from workbench.errors import WorkbenchError
from workbench.optim import AGC, EMA, warmup_cosine
from workbench.training.cause import cause_of_evaluation, cause_of_step, gradient_norms
from workbench.training.checkpoint import Checkpoints
from workbench.training.config import (
    DIVERGED_SHARE,
    TrainConfig,
    TrainResult,
    code_hash,
    planned,
    training_key,
)
from workbench.training.distributed import World, joined
from workbench.training.gradients import Gradients
from workbench.training.inputs import Inputs, source
from workbench.training.precision import Bfloat16Copies
from workbench.training.scoring import evaluate, few_images, final_metrics, scores_at_end
from workbench.training.setup import groups_of, initial_model, layout, pick_device, steps_of
from workbench.training.streamed import StreamedInputs
from workbench.training.watch import Curvature, LossWatch, Signals, Telemetry
from workbench.weights.checkpoints import save_checkpoint

Log = Callable[[dict], bool | None]
Tables = Callable[[str, pd.DataFrame], None]
Observe = Callable[[int, Tensor, nn.Module, torch.optim.Optimizer], None]


def train(
    config: TrainConfig,
    log: Log | None = None,
    tables: Tables | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    save: str | Path | None = None,
    stop: Callable[[], bool] | None = None,
    observe: Observe | None = None,
) -> TrainResult:
    """Trains `config` and returns what came of it; on CPU two runs of one configuration are equal bit for bit.

    Args: `log` is called with every history row as it is measured; when it returns True the training ends, outcome
    "pruned". `tables` is called at the end with (name, table): "agc", one row a parameter and step, where
    `telemetry_every` asks for it; "signal", one row a block and step, where `signal_every` does, and
    "curvature", one row a step, where `curvature_every` does. With `checkpoints` a
    training that was killed goes on from its last one, to the very same result; `log` is then called with the rows
    before it, too. `save` is where the final weights go (.safetensors; with an average, that goes beside it as
    NAME.ema.safetensors), with the size and moments of the images they take.
    `stop` is asked after every step but the last; when it says True a checkpoint is written, where there are
    checkpoints, and KeyboardInterrupt raised: nothing is lost, and the next `train` goes on after that step.
    `observe` is called in every step, with (step, loss, model, optimizer), when the gradient is there and before it is
    clipped and used; what it sets in the optimizer's groups holds for that step.
    A divergence (a step's loss not finite or above 20 ln(classes), a gradient not finite, a validation loss not finite)
    ends the training before that step's update and is reported with its step and cause, see `cause_of_step`.
    Started by torchrun, the processes share every batch; each returns the result, the first calls and writes.
    Raises: WorkbenchError for a configuration that its data cannot serve; KeyboardInterrupt where `stop` says so;
    nothing for a training that goes wrong.
    """
    config = planned(config)
    data = source(config)
    world = World.from_environment()
    device = world.device(pick_device(config.device))
    total_steps = steps_of(config, len(data.train))
    if world.size > config.batch_size:
        raise WorkbenchError(f"`batch_size` (={config.batch_size}) must be at least one a process (={world.size}).")
    if not world.first:
        log = tables = save = stop = None
    devices = range(torch.cuda.device_count()) if device.type == "cuda" else []
    with joined(world), torch.random.fork_rng(devices=devices):
        return _train(config, data, world, device, total_steps, log, tables, checkpoints, save, stop, observe)


def _train(
    config: TrainConfig,
    data: Dataset | ImageFolder,
    world: World,
    device: torch.device,
    total_steps: int,
    log: Log | None,
    tables: Tables | None,
    checkpoints: Checkpoints | None,
    save: str | Path | None,
    stop: Callable[[], bool] | None,
    observe: Observe | None,
) -> TrainResult:
    started = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(seed_for(config.seed, "init"))
    model = initial_model(config, data).to(device, memory_format=layout(config.precision, device))
    net = world.wrapped(Bfloat16Copies(model) if config.precision == "bfloat16_copies" else model)
    groups = groups_of(model, config)
    sgd = {"lr": config.lr, "momentum": config.momentum, "nesterov": config.momentum > 0}
    optimizer = torch.optim.SGD(groups, **sgd, fused=True)
    agc = AGC(optimizer, config.clip, config.clip_eps) if config.clip is not None else None
    ema = EMA(model, config.ema) if config.ema is not None else None
    schedule = warmup_cosine(optimizer, config.warmup * total_steps, total_steps, config.final_lr / config.lr)

    gradients = Gradients(model, net, config, world, device)
    inputs = (StreamedInputs if config.stream else Inputs)(config, data, world, device)
    n = len(inputs.train)
    eval_every = config.eval_every or max(1, min(n // config.batch_size, total_steps // 4))
    watch = LossWatch(limit=DIVERGED_SHARE * math.log(len(data.classes)), every=1 if device.type == "cpu" else 10)
    telemetry = Telemetry(config.telemetry_every)
    signals = Signals(config.signal_every if world.first else None, model, lambda: few_images(inputs.val(), 64))
    curvature = Curvature(
        config.curvature_every if world.first else None, model, lambda: few_images(inputs.val(), 256), config.momentum
    )

    parameters = list(model.parameters())
    history: list[dict] = []
    outcome, cause, step, key = "complete", None, 0, training_key(config, data.digest)
    stateful = {
        "optimizer": optimizer,
        "schedule": schedule,
        "watch": watch,
        "telemetry": telemetry,
        "signals": signals,
        "curvature": curvature,
    }
    stateful |= {name: part for name, part in (("agc", agc), ("ema", ema)) if part is not None}
    checkpoint = checkpoints.latest(key, model, device) if checkpoints is not None else None
    if checkpoint is not None:
        step, history, spent = checkpoint["step"], checkpoint["history"], checkpoint["seconds"]
        started -= spent
        inputs.unreadable.update(checkpoint["unreadable"])
        for name, part in stateful.items():
            part.load_state_dict(checkpoint[name])
        if world.agree(log is not None and any([log(row) for row in history])) and step < total_steps:
            outcome = "pruned"
    if world.agree(step) != step:
        raise WorkbenchError("the processes see different checkpoints: put mlruns/ where all of them see it.")
    bar = tqdm(
        total=total_steps,
        initial=step,
        desc=config.name,
        unit="step",
        leave=False,
        disable=not config.progress,
        mininterval=0.5,
    )
    done, can_stop = step, world.agree(stop is not None)
    for measured in (signals, curvature):
        if done == 0:
            measured.take(0, lr=0.0)
    remaining = inputs.steps(total_steps, done) if outcome == "complete" else []
    for step, parts in enumerate(remaining, start=done + 1):
        loss = gradients(parts)
        if observe is not None:
            observe(step, loss, model, optimizer)
        at_row = step % eval_every == 0 or step == total_steps
        if watch.diverged(step, loss, gradient_norms(parameters), look=at_row):
            outcome, step = "diverged", watch.step
            failed = next(iter(inputs.steps(total_steps, step - 1)))
            again = lambda parts=failed: gradients(parts)  # the weights are still those that failed
            cause = cause_of_step(model, step, watch.loss, watch.limit, watch.norms, again, config.clip_eps)
            break
        optimizer.found_inf = watch.failed
        lr = optimizer.param_groups[0]["lr"]
        if config.clip_norm is not None:
            grad_norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()  # AGC clips here, before the update
        schedule.step()
        if ema is not None:
            ema.update()
        if agc is not None:
            telemetry.take(step, agc.stats)
        for measured in (signals, curvature):
            measured.take(step, lr)
        bar.update()

        if at_row:
            val_loss, val_acc = evaluate(model, inputs.val())
            ema_loss, ema_acc = evaluate(ema.model, inputs.val()) if ema is not None else (0.0, 0.0)
            if not world.agree(math.isfinite(val_loss + ema_loss)):
                outcome = "diverged"
                averaged = ema is not None and math.isfinite(val_loss)
                weights, loss = (ema.model, ema_loss) if averaged else (model, val_loss)
                again = lambda weights=weights: evaluate(weights, inputs.val())
                cause = cause_of_evaluation(weights, step, loss, again)
                break
            row = {
                "step": step,
                "epoch": step * config.batch_size / n,
                "samples_seen": step * config.batch_size,
                "lr": lr,
                "train_loss": watch.mean_since_last(),
                "val_loss": val_loss,
                "val_acc": val_acc,
                "seconds": time.perf_counter() - started,
            }
            if ema is not None:
                row["ema_val_loss"], row["ema_val_acc"] = ema_loss, ema_acc
            if agc is not None:
                row |= {"clipped_share": agc.stats.clipped_share(), "ratio_p99": agc.stats.ratio_quantile(0.99)}
                telemetry.settle()
            if config.clip_norm is not None:
                row["grad_norm"] = grad_norm.item()
            history.append(row)
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", val=f"{val_acc:.1%}")
            if world.agree(log is not None and bool(log(row))) and step < total_steps:
                outcome = "pruned"
                break
        stopped = can_stop and step < total_steps and world.agree(stop is not None and bool(stop()))
        if checkpoints is not None and world.first and (stopped or checkpoints.due(step)):
            state = {name: part.state_dict() for name, part in stateful.items()}
            spent = time.perf_counter() - started
            checkpoints.save(
                key,
                step,
                model,
                {"step": step, "history": history, "seconds": spent, "unreadable": sorted(inputs.unreadable), **state},
            )
        if stopped:
            bar.close()
            raise KeyboardInterrupt
    bar.close()
    if save is not None and outcome == "complete":
        _save_weights(model, ema, save, inputs.preprocess)
    for name, measured in (("agc", telemetry), ("signal", signals), ("curvature", curvature)):
        if tables is not None and measured.every:
            table = measured.table()
            tables(name, table[table.step < step] if outcome == "diverged" else table)

    seconds = time.perf_counter() - started
    metrics = final_metrics(history, outcome, step, len(data.classes))
    if outcome == "complete":
        metrics |= scores_at_end(model, ema, config, inputs)
    if inputs.unreadable:
        metrics["images_skipped"] = len(inputs.unreadable)
    metrics |= {
        "steps_planned": total_steps,
        "steps_done": step,
        "samples_seen": step * config.batch_size,
        "device_seconds": seconds * world.size,
        "images_per_second": step * config.batch_size / seconds,
        "n_params": sum(p.numel() for p in model.parameters()),
        "depth": len(model.blocks),
    }
    if device.type == "cuda":
        metrics["peak_memory"] = torch.cuda.max_memory_allocated(device)
    return TrainResult(
        key=key,
        config=config,
        outcome=outcome,
        history=history,
        metrics=metrics,
        cause=cause,
        seconds=seconds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}",
        versions={"torch": torch.__version__, "python": platform.python_version()},
        data_digest=data.digest,
        code=code_hash(),
    )


def _save_weights(model: nn.Module, ema: EMA | None, file: str | Path, preprocess: dict) -> None:
    file = save_checkpoint(model, file, preprocess)
    if ema is not None:
        save_checkpoint(ema.model, file.with_suffix(".ema.safetensors"), preprocess)
