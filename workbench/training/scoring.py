"""What a training is measured by: loss and accuracy on a split, and the metrics of its end."""

import copy
import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models.once import standardized_once
from workbench.optim import EMA
from workbench.training.config import FAILURE_SHARE, TrainConfig
from workbench.training.inputs import Batch, Inputs

WHERE = ("step", "epoch", "samples_seen", "lr", "seconds")  # of a history row: where the training is, not how it does


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """(cross-entropy, accuracy from 0 to 1) of `model` in evaluation mode and float32; its own mode is put back."""
    training = model.training
    model.eval()
    loss, correct, n = 0.0, 0, 0
    with standardized_once(model):
        for x, y in batches:
            logits = model(x)
            loss += F.cross_entropy(logits, y, reduction="sum").item()
            correct += (logits.argmax(1) == y).sum().item()
            n += len(y)
    model.train(training)
    if n == 0:
        raise WorkbenchError("none of the images to evaluate on can be read: look at the lines above.")
    return loss / n, correct / n


def with_statistics_of(model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """A copy whose BatchNorms hold the mean statistics of these batches, instead of their moving averages.

    Source: Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm" (precise BatchNorm).
    """
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(batches, model)
    return model


def few_images(batches: Iterable[Batch], n: int) -> Batch:
    """The first images of the first batch."""
    x, y = next(iter(batches))
    return x[:n], y[:n]


def final_metrics(history: list[dict], outcome: str, step: int, classes: int) -> dict[str, float]:
    """The last row's values; a diverged training counts as guessing, and has no loss."""
    if outcome == "diverged":
        return {"val_acc": 1 / classes, "failed": 1, "failed_at_step": step}
    last = {name: value for name, value in history[-1].items() if name not in WHERE}
    return {**last, "failed": int(not last["train_loss"] <= FAILURE_SHARE * math.log(classes))}


def scores_at_end(model: nn.Module, ema: EMA | None, config: TrainConfig, inputs: Inputs) -> dict[str, float]:
    """What a complete training is asked besides: the test split, the average's accuracy there, and BatchNorm's with
    statistics taken again, on both splits."""
    scores = {}
    if config.precise_bn is not None:
        precise = with_statistics_of(model, inputs.plain(config.precise_bn))
        scores["precise_val_acc"] = evaluate(precise, inputs.val())[1]
        if config.evaluate_test:
            scores["precise_test_acc"] = evaluate(precise, inputs.test())[1]
    if config.evaluate_test:
        scores["test_acc"] = evaluate(model, inputs.test())[1]
        if ema is not None:
            scores["ema_test_acc"] = evaluate(ema.model, inputs.test())[1]
    return scores
