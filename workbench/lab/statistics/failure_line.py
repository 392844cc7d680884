"""How trainings ended, read again from their tables, and verdicts that do not depend on the failure line.

A training is *diverged* if a loss or gradient was not finite or left all bounds, and *collapsed* if it ended no better
than guessing: with a validation cross-entropy of at least `COLLAPSED_SHARE` ln C, for C classes. Both have *failed*. A
slow training has not. The validation cross-entropy is over the whole split and has no smoothing, so batch size, mixing
and smoothing do not matter.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError
from workbench.lab.statistics.verdict import Verdict
from workbench.outcomes import CLASSES, COLLAPSED, COLLAPSED_SHARE, COMPLETE, FAILURES, FINISHED

LINES = (0.85, 0.90, 0.95, 0.97, 0.99)  # a verdict about failures must be the same at each of them


def at_line(table: pd.DataFrame, line: float = COLLAPSED_SHARE) -> pd.DataFrame:
    """Read outcomes again, with a failure line.

    Args:
        table: One row per training. Columns outcome, val_loss, and classes or data. Other tables stay as they are.
        line: Share of ln C from which a finished training counts as collapsed.

    Returns:
        The table with `outcome` and `failed` at this line.

    Raises:
        WorkbenchError: If a finished training has no validation loss.
    """
    if "outcome" not in table or table.empty:
        return table
    finished = table.outcome.isin(FINISHED)
    if not finished.any():
        worst = finished
    elif "val_loss" not in table or table.val_loss[finished].isna().any():
        raise WorkbenchError("a finished training has no `val_loss`. Run its study again to measure it.")
    else:
        worst = finished & (table.val_loss >= line * np.log(_classes(table)))
    outcome = table.outcome.mask(finished, COMPLETE).mask(worst, COLLAPSED)
    return table.assign(outcome=outcome, failed=outcome.isin(FAILURES).astype(int))


def collapsed(table: pd.DataFrame) -> pd.Series:
    """Return for each training whether it collapsed. False where the table has no outcomes."""
    return table.outcome == COLLAPSED if "outcome" in table else pd.Series(False, table.index)


def over_lines(judge: Callable[..., Verdict], *tables: pd.DataFrame) -> Verdict:
    """Judge failures at every line of `LINES`.

    Args:
        judge: Judges the tables of a claim.
        *tables: The tables.

    Returns:
        The verdict at `COLLAPSED_SHARE`, with its `curve`. If the answer changes with the line, it is not decided and
        says so.
    """
    by_line: dict[float, Verdict] = {}
    before, verdict = None, None
    for line in LINES:
        read = [at_line(table, line) for table in tables]
        outcomes = pd.concat([table.get("outcome", pd.Series(dtype=object)) for table in read], ignore_index=True)
        if verdict is None or not outcomes.equals(before):  # judging the same outcomes again takes seconds
            verdict = judge(*read)
        by_line[line], before = verdict, outcomes
    verdict = by_line[COLLAPSED_SHARE]
    curve = pd.DataFrame(
        {"line": line, "holds": each.holds, "effect": each.effect.value.mean, "low": each.effect.value.low,
         "high": each.effect.value.high, "p": each.effect.p} for line, each in by_line.items()
    )  # fmt: skip
    if len({each.holds for each in by_line.values()}) == 1:
        return dataclasses.replace(verdict, curve=curve)
    return dataclasses.replace(verdict, holds=None, depends_on_line=True, curve=curve)


def _classes(table: pd.DataFrame) -> pd.Series:
    """Return the number of classes of each row."""
    known = table["classes"] if "classes" in table else pd.Series(np.nan, table.index)
    known = known.fillna(table.data.map(CLASSES)) if "data" in table else known
    if known.isna().any():
        raise WorkbenchError("the number of classes is unknown. Run the study again, which records it.")
    return known
