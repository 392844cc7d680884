"""How a training can end. The words and the rule are the same in trainings, tables, judges and figures.

- complete: it went through all its steps, and is better than guessing.
- collapsed: it went through all its steps, and its validation cross-entropy at the end is no better than guessing.
- diverged: a loss or gradient was not finite, or the training loss left all bounds, and it stopped there.
- pruned: a search stopped it early, because others were better.
- failed: its process ended with an error. Such a training has no result.

Diverged and collapsed trainings are results: both count as failures of their configuration. A slow one does not.
"""

import math

COMPLETE, COLLAPSED, DIVERGED, PRUNED, FAILED = "complete", "collapsed", "diverged", "pruned", "failed"
OUTCOMES = (COMPLETE, COLLAPSED, DIVERGED, PRUNED, FAILED)
FINISHED = (COMPLETE, COLLAPSED)  # went through all their steps
FAILURES = (COLLAPSED, DIVERGED)  # of their configuration
RESULTS = (COMPLETE, COLLAPSED, DIVERGED)  # need not be trained again

# Shares of ln(classes), the loss of guessing
COLLAPSED_SHARE = 0.95  # collapsed: the validation loss at the end is at least this
DIVERGED_SHARE = 20.0  # diverged: the loss of a step is above this

# Of data sets whose older trainings do not record it
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist5k": 10}


def at_end(val_loss: float, classes: int) -> tuple[str, str | None]:
    """Return the outcome of a training that went through all its steps.

    Args:
        val_loss: Cross-entropy of its weights on the whole validation split, without mixing and smoothing.
        classes: Number of classes.

    Returns:
        Complete or collapsed, and the cause of a collapse in words.
    """
    line = COLLAPSED_SHARE * math.log(classes)
    if classes < 2 or val_loss < line:
        return COMPLETE, None
    return COLLAPSED, f"validation loss {val_loss:.4g} at the end is at least {line:.4g}: no better than guessing"
