"""The verdict of a study whose arms cannot be compared, and what became of their trainings.

A diverged training counts as guessing, and a collapsed one guesses. So two arms that only failed look equal, although
nothing was measured.
"""

import math

import pandas as pd

from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.outcomes import COLLAPSED, COMPLETE, DIVERGED

NOTHING = Interval(math.nan, math.nan, math.nan, 0)


def nothing_to_compare(trained: pd.DataFrame, *arms: str, tried: pd.DataFrame | None = None) -> Verdict | None:
    """Return an undecided verdict if these arms cannot be compared, otherwise None.

    They cannot if an arm has no training, or if no training of these arms completed.

    Args:
        trained: The trainings that decide. Columns arm, outcome, and cause if it is known.
            Without outcomes, all count as complete.
        arms: The arms of the contrast. None given: all arms of `trained`.
        tried: The trainings that chose what to train, with the same columns. The table of the verdict lists them, too.
    """
    compared = trained if trained.empty or not arms else trained[trained.arm.isin(arms)]
    missing = [arm for arm in arms if compared.empty or arm not in set(compared.arm)]
    if not missing and ("outcome" not in compared or (compared.outcome == COMPLETE).any()):
        return None
    table = outcomes_of(pd.concat([rows for rows in (tried, trained) if rows is not None and len(rows)] or [trained]))
    return Verdict(None, Effect("what the arms differ by", NOTHING), _headline(compared, missing, table), table)


def _headline(compared: pd.DataFrame, missing: list[str], table: pd.DataFrame) -> str:
    outcomes = set(table.outcome)
    if len(table) and COMPLETE not in outcomes:
        ended = "no training completed"
        if outcomes <= {DIVERGED, COLLAPSED}:
            ended = f"all trainings {' or '.join(sorted(outcomes))}, so lower the learning rates"
    elif missing:
        ended = f"there is no training of {' and of '.join(missing)}"
    else:
        arms = list(dict.fromkeys(compared.arm))
        ended = f"no training of {' or of '.join(arms[:3])} completed" if arms else "there is no training"
    return f"Nothing can be compared: {ended}."


def outcomes_of(trained: pd.DataFrame) -> pd.DataFrame:
    """Count the trainings of each arm by outcome.

    Returns:
        Columns arm, outcome, n, the lowest and highest rate with that outcome, and the first cause.
    """
    columns = ["arm", "outcome", "lr", "cause"]
    by_outcome = trained.reindex(columns=columns).groupby(["arm", "outcome"], sort=False, dropna=False)
    counted = by_outcome.agg(
        n=("lr", "size"), lowest_rate=("lr", "min"), highest_rate=("lr", "max"), cause=("cause", "first")
    )
    return counted.reset_index()
