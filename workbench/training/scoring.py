"""Measure a training: loss and accuracy on a split, and the final metrics."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from workbench.copies import copied
from workbench.data.augment import seed_for
from workbench.errors import WorkbenchError
from workbench.models.once import standardized_once
from workbench.optim import EMA
from workbench.outcomes import DIVERGED, FAILURES
from workbench.training.config import TrainConfig
from workbench.training.inputs import Batch, Inputs
from workbench.training.streamed import StreamedInputs

WHERE = ("step", "epoch", "samples_seen", "lr", "seconds")  # columns of a history row that measure no quality


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Evaluate a network in evaluation mode and float32, then restore its mode.

    Args:
        model: The network.
        batches: Images (N, C, H, W) and labels (N,).

    Returns:
        Mean cross-entropy, and accuracy from 0 to 1.

    Raises:
        WorkbenchError: If there is no image.
    """
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
        raise WorkbenchError("None of the images to evaluate can be read. The lines above name them.")
    return loss / n, correct / n


def with_statistics_of(model: nn.Module, batches: Iterable[Batch]) -> nn.Module:
    """Return a copy with precise BatchNorm statistics.

    They are the mean statistics of these batches, instead of moving averages. Source: Wu and Johnson 2021,
    "Rethinking 'Batch' in BatchNorm".

    Args:
        model: The network, which stays unchanged.
        batches: Images (N, C, H, W) and labels, which are not used.
    """
    model = copied(model)
    torch.optim.swa_utils.update_bn(batches, model)
    return model


def few_images(batches: Iterable[Batch], n: int) -> Batch:
    """Return the first `n` images of the first batch, with their labels."""
    x, y = next(iter(batches))
    return x[:n], y[:n]


def final_metrics(history: list[dict], outcome: str, step: int, classes: int) -> dict[str, float]:
    """Return the values of the last row, and whether the training failed.

    A diverged training gets the accuracy of guessing, and no loss.

    Args:
        history: The rows.
        outcome: Of the training.
        step: The last step, or the step that diverged.
        classes: Number of classes.
    """
    if outcome == DIVERGED:
        return {"val_acc": 1 / classes, "failed": 1, "failed_at_step": step, "classes": classes}
    last = {name: value for name, value in history[-1].items() if name not in WHERE}
    return {**last, "failed": int(outcome in FAILURES), "classes": classes}


def scores_at_end(
    model: nn.Module, ema: EMA | None, config: TrainConfig, inputs: Inputs | StreamedInputs
) -> dict[str, float]:
    """Return the additional accuracies that a configuration selects, after all steps.

    With `evaluate_test` they are those on the test split, of the weights and of their average. With `precise_bn` they
    are those with precise BatchNorm statistics, on both splits. The statistics are of augmented images, as in training.

    Args:
        model: The network.
        ema: The average of its weights.
        config: The configuration.
        inputs: The images.
    """
    scores = {}
    if config.precise_bn is not None:
        assert isinstance(inputs, Inputs)  # TrainConfig refuses precise_bn with stream
        torch.manual_seed(seed_for(config.seed, "statistics"))  # the network may draw, such as for dropout
        precise = with_statistics_of(model, inputs.augmented(config.precise_bn))
        scores["precise_val_acc"] = evaluate(precise, inputs.val())[1]
        if config.evaluate_test:
            scores["precise_test_acc"] = evaluate(precise, inputs.test())[1]
    if config.evaluate_test:
        scores["test_acc"] = evaluate(model, inputs.test())[1]
        if ema is not None:
            scores["ema_test_acc"] = evaluate(ema.model, inputs.test())[1]
    return scores
