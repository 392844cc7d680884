"""One straight training loop: data in memory, SGD with Nesterov momentum, AGC, a cosine; the result is data.

Source: the NFNet paper's recipe, section 4 and appendix A. AGC sees the gradient of the whole batch, once, after its
last micro-batch.
"""

import math
import platform
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data import Dataset, Split, load_dataset
from workbench.data.augment import flip_shift, generator_for, normalize, seed_for
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.optim import AGC, param_groups, warmup_cosine
from workbench.training.config import (
    DIVERGED_SHARE,
    FAILURE_SHARE,
    TrainConfig,
    TrainResult,
    code_hash,
    training_key,
)

EVAL_BATCH = 512
Log = Callable[[dict], bool | None]


def train(config: TrainConfig, log: Log | None = None) -> TrainResult:
    """Trains `config` and returns what came of it; on CPU two runs of one configuration are equal bit for bit.

    Args: `log` is called with every history row as it is measured; when it returns True the training ends, outcome
    "pruned". A divergence (a step's loss not finite, or above 20 ln(classes)) ends the training and is reported with
    its step and cause.
    Raises: WorkbenchError for a configuration that its data cannot serve; nothing for a training that goes wrong.
    """
    data = load_dataset(config.data, config.image_size)
    device = pick_device(config.device)
    train_split = data.train.take(slice(0, config.train_size))
    total_steps = steps_of(config, len(train_split))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
        return _train(config, data, train_split, device, total_steps, log)


def _train(
    config: TrainConfig, data: Dataset, train_split: Split, device: torch.device, total_steps: int, log: Log | None
) -> TrainResult:
    started = time.perf_counter()
    torch.manual_seed(seed_for(config.seed, "init"))
    model = create_model(config.model, len(data.classes), in_channels=data.channels, **config.model_args).to(device)
    groups = param_groups(model, config.weight_decay, config.clip)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    agc = AGC(optimizer, config.clip, config.clip_eps) if config.clip is not None else None
    schedule = warmup_cosine(optimizer, config.warmup * total_steps, total_steps)

    images, labels = train_split.images.to(device), train_split.labels.to(device)
    val, mean, std = data.val.to(device), data.mean.to(device), data.std.to(device)
    flip = data.flip if config.flip is None else config.flip
    shift = images.shape[-1] // 8 if config.shift is None else config.shift
    eval_every = config.eval_every or max(1, min(len(labels) // config.batch_size, total_steps // 4))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    watch = LossWatch(limit=DIVERGED_SHARE * math.log(len(data.classes)), every=1 if device.type == "cpu" else 10)

    history: list[dict] = []
    outcome, step = "complete", 0
    bar = tqdm(
        total=total_steps, desc=config.name, unit="step", leave=False, disable=not config.progress, mininterval=0.5
    )
    for step, index in enumerate(batches(len(labels), config.batch_size, config.seed, total_steps), start=1):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)  # cross-entropy without smoothing, what is reported
        for micro, part in enumerate(index.split(config.micro_batch or config.batch_size)):
            x, y = images[part.to(device)], labels[part.to(device)]
            if flip or shift:
                x = flip_shift(x, generator_for(config.seed, "augment", step, micro), flip=flip, shift=shift)
            torch.manual_seed(seed_for(config.seed, "forward", step, micro))
            with autocast:
                logits = model(normalize(x, mean, std))
            share = len(part) / len(index)  # parts that do not divide evenly are weighted rightly
            (F.cross_entropy(logits.float(), y, label_smoothing=config.label_smoothing) * share).backward()
            loss += F.cross_entropy(logits.detach().float(), y) * share
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()  # AGC clips here, before the update
        schedule.step()
        bar.update()

        at_row = step % eval_every == 0 or step == total_steps
        if watch.diverged(step, loss, look=at_row):
            outcome, step = "diverged", watch.step
            break
        if at_row:
            val_loss, val_acc = evaluate(model, val, mean, std, autocast)
            row = {
                "step": step,
                "epoch": step * config.batch_size / len(labels),
                "samples_seen": step * config.batch_size,
                "lr": lr,
                "train_loss": watch.mean_since_last(),
                "val_loss": val_loss,
                "val_acc": val_acc,
                "seconds": time.perf_counter() - started,
            }
            if agc is not None:
                row |= {"clipped_share": agc.stats.clipped_share(), "ratio_p99": agc.stats.ratio_quantile(0.99)}
            history.append(row)
            bar.set_postfix(loss=f"{row['train_loss']:.3f}", val=f"{val_acc:.1%}")
            if log is not None and log(row) and step < total_steps:
                outcome = "pruned"
                break
    bar.close()

    seconds = time.perf_counter() - started
    metrics = _final_metrics(history, outcome, step, len(data.classes))
    if config.evaluate_test and outcome == "complete":
        metrics["test_acc"] = evaluate(model, data.test.to(device), mean, std, autocast)[1]
    metrics |= {
        "steps_planned": total_steps,
        "steps_done": step,
        "samples_seen": step * config.batch_size,
        "device_seconds": seconds,
        "images_per_second": step * config.batch_size / seconds,
        "n_params": sum(p.numel() for p in model.parameters()),
        "depth": len(model.blocks),
    }
    if device.type == "cuda":
        metrics["peak_memory"] = torch.cuda.max_memory_allocated(device)
    return TrainResult(
        key=training_key(config, data.digest),
        config=config,
        outcome=outcome,
        history=history,
        metrics=metrics,
        cause=watch.cause if outcome == "diverged" else None,
        seconds=seconds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} {platform.machine()}",
        versions={"torch": torch.__version__, "python": platform.python_version()},
        data_digest=data.digest,
        code=code_hash(),
    )


class LossWatch:
    """The losses of the steps, left on the device and read only every so often, since reading one waits for it.

    Sees at which step the loss first left `limit` or was not finite; `step` and `cause` then say so.
    """

    def __init__(self, limit: float, every: int):
        self.limit, self.every = limit, every
        self.step, self.cause = 0, None
        self._unread: list[Tensor] = []
        self._since_last: list[float] = []

    def diverged(self, step: int, loss: Tensor, look: bool) -> bool:
        """Takes the loss of `step`; whether one of those so far left the limit (looked at now, or every so often)."""
        self._unread.append(loss)
        if not look and step % self.every:
            return False
        values = torch.stack(self._unread).tolist()
        for at, value in enumerate(values, start=step - len(values) + 1):
            if not value <= self.limit:  # also where it is not a number
                self.step, self.cause = at, f"training loss {value:.4g} at step {at}"
                return True
        self._since_last += values
        self._unread.clear()
        return False

    def mean_since_last(self) -> float:
        """The mean loss of the steps since this was last asked."""
        mean = sum(self._since_last) / len(self._since_last)
        self._since_last.clear()
        return mean


def _final_metrics(history: list[dict], outcome: str, step: int, classes: int) -> dict[str, float]:
    """The last row's values; a diverged training counts as guessing, and has no loss."""
    if outcome == "diverged":
        return {"val_acc": 1 / classes, "failed": 1, "failed_at_step": step}
    names = ("train_loss", "val_loss", "val_acc", "clipped_share", "ratio_p99")
    last = {name: history[-1][name] for name in names if name in history[-1]}
    return {**last, "failed": int(not last["train_loss"] <= FAILURE_SHARE * math.log(classes))}


def steps_of(config: TrainConfig, n: int) -> int:
    """How many steps `config` takes on `n` training images. The last, smaller batch of an epoch is left out."""
    if config.batch_size > n:
        raise WorkbenchError(
            f"`batch_size` (={config.batch_size}) must be at most the number of training images (={n})."
        )
    return config.steps or max(1, round(config.epochs * (n // config.batch_size)))


def batches(n: int, batch_size: int, seed: int, total_steps: int) -> Iterator[Tensor]:
    """Indices (batch_size,) of each step: every epoch is one permutation, a function of (seed, epoch)."""
    per_epoch = n // batch_size
    for step in range(total_steps):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            order = torch.randperm(n, generator=generator_for(seed, "order", epoch))
        yield order[i * batch_size : (i + 1) * batch_size]


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, mean: Tensor, std: Tensor, autocast) -> tuple[float, float]:
    """(cross-entropy, accuracy from 0 to 1) of `model` in evaluation mode; its own mode is put back."""
    training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for x, y in zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True):
        with autocast:
            logits = model(normalize(x, mean, std))
        loss += F.cross_entropy(logits.float(), y, reduction="sum").item()
        correct += (logits.argmax(1) == y).sum().item()
    model.train(training)
    return loss / len(split), correct / len(split)


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one; a device that is not there is refused."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorkbenchError(f"`device` (={name}) must be auto, cpu, cuda, cuda:N or mps.") from error
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        device.type, 0
    )
    if (device.index or 0) >= found:
        raise WorkbenchError(
            f"`device` (={name}) is not on this machine, which has {found} of type {device.type}: use device=auto."
        )
    return device
