"""What makes claims testable, measured on their trainings. Every function returns a `Precondition`."""

import pandas as pd

from workbench.lab.statistics.effects import EQUAL
from workbench.lab.statistics.failure_line import LINES, at_line
from workbench.lab.statistics.verdict import Precondition

TRAINED_OUT = 0.85  # validation accuracy of BatchNorm from which its accuracy is worth a comparison
BATCHNORM = f"BatchNorm reaches {TRAINED_OUT:.0%} validation accuracy"
OVERFITTING = 0.3  # nats of cross-entropy by which the validation loss is above the training loss
GAP = f"the validation loss is at least {OVERFITTING:g} nats above the training loss"
FAILURES = f"some trainings of the two arms fail at {LINES[0]:g} ln C, and some do not"
TRAINS = "no training of the two arms fails"
LED = f"screening separates the chosen rate of both arms from the next by {100 * EQUAL:g} points"


def batchnorm_trained_out(text: str, trained: pd.DataFrame, arm: str = "BN") -> Precondition:
    """Measure the mean validation accuracy of the BatchNorm arm.

    Args:
        text: The claim's precondition.
        trained: Columns arm, val_acc.
        arm: The arm with BatchNorm.
    """
    accuracy = float(trained[trained.arm == arm].val_acc.mean())
    return Precondition(text, _measured(accuracy, ".1%"), accuracy >= TRAINED_OUT)


def overfits(text: str, trained: pd.DataFrame, arm: str) -> Precondition:
    """Measure the mean distance of validation loss and training loss of an arm.

    Args:
        text: The claim's precondition.
        trained: Columns arm, train_loss, val_loss.
        arm: An arm whose training loss is neither mixed nor smoothed.
    """
    rows = trained[trained.arm == arm]
    gap = float((rows.val_loss - rows.train_loss).mean())
    return Precondition(text, _measured(gap, "+.2f", " nats"), gap >= OVERFITTING)


def some_fail(text: str, trained: pd.DataFrame, *arms: str) -> Precondition:
    """Count the failed trainings of these arms, at the lowest failure line.

    Args:
        text: The claim's precondition.
        trained: Columns as for `at_line`, and arm.
        arms: The arms of the contrast.
    """
    failed = at_line(trained[trained.arm.isin(arms)], LINES[0]).failed
    count = int(failed.sum())
    return Precondition(text, f"{count} of {len(failed)} fail", 0 < count < len(failed))


def none_fails(text: str, trained: pd.DataFrame, *arms: str) -> Precondition:
    """Count the failed trainings of these arms.

    Args:
        text: The claim's precondition.
        trained: Columns arm and outcome. Without outcomes, none failed.
        arms: The arms of the contrast.
    """
    rows = trained[trained.arm.isin(arms)]
    failed = int((rows.outcome != "complete").sum()) if "outcome" in rows else 0
    return Precondition(text, f"{failed} of {len(rows)} fail", failed == 0)


def rate_separated(text: str, screened: pd.DataFrame, *arms: str) -> Precondition:
    """Measure by how much screening prefers each arm's rate to its next best one.

    A confirmation of any size is precise about the wrong rate if screening chose the rate by chance.

    Args:
        text: The claim's precondition.
        screened: Columns arm, lr, val_acc.
        arms: The arms of the contrast.
    """
    leads = []
    for arm in arms:
        means = screened[screened.arm == arm].groupby("lr").val_acc.mean().sort_values()
        leads.append(float(means.iloc[-1] - means.iloc[-2]) if len(means) > 1 else 0.0)
    measured = f"{' and '.join(f'{100 * lead:.1f}' for lead in leads)} points"
    return Precondition(text, measured, min(leads) >= EQUAL)


def _measured(value: float, spec: str, unit: str = "") -> str:
    return "not measured" if pd.isna(value) else f"{value:{spec}}{unit}"
