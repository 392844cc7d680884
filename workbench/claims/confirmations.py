"""All confirmations that ever ran, computed again from their tables, and how far those of a claim agree.

A study is repeated because its design or its seeds changed. One confirmation decides, that of the committed tables. The
others are kept and shown, too. Cochran's Q compares the confirmations of a claim with their common mean, weighted by
precision.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.claims.registry import RegisteredClaim
from workbench.lab.statistics.verdict import Effect

FILE = "confirmations.csv"
DISAGREE = 0.05  # of the p-value of Cochran's Q
FEWEST = 3  # observations from which an interval counts in Q
AS_DECIDED = "decides"


@dataclass(frozen=True)
class Earlier:
    """A confirmation that does not decide.

    Attributes:
        study: Its study.
        file: How the names of its tables start, under docs/results. Tables that it lacks are those of the study today.
        run: First digits of its run's id.
        date: Day on which the run ended.
        differed: What differed from the confirmation that decides.
    """

    study: str
    file: str
    run: str
    date: str
    differed: str


EARLIER = (
    Earlier("signal_propagation", "signal_propagation_first_run", "1049bb56", "2026-11-22", "first run"),
    Earlier("large_batch", "large_batch_120_steps", "fa8f4635", "2026-11-22", "120 steps, other rates, three seeds"),
    Earlier("threshold_scaling", "stability_boundary_grid", "8cbd4725", "2026-11-23",
            "rates a doubling apart, other thresholds"),
    Earlier("layer_study", "layer_study_first_seeds", "f435e873", "2026-11-23", "seeds that an earlier run had used"),
    Earlier("layer_study", "layer_study_32_seeds", "bbc2fac5", "2026-11-28", "two arms, 32 seeds, another best rate"),
    Earlier("small_batch", "small_batch_clip_0.04", "57af7b1a", "2026-11-23", "threshold fixed at 0.04"),
    Earlier("small_batch", "small_batch_two_thresholds", "8616f678", "2026-11-23", "two thresholds"),
    Earlier("stability_boundary", "stability_boundary_grid", "0050ca14", "2026-11-23",
            "rates a doubling apart, two seeds"),
    Earlier("stability_boundary", "stability_boundary_fresh_seeds", "702d8314", "2026-11-23",
            "rates a doubling apart, four seeds"),
    Earlier("ablation", "ablation_from_zero", "afb98581", "2026-11-23", "skip gains from 0"),
    Earlier("ablation", "ablation_first_seeds", "42a8f613", "2026-11-23", "seeds that an earlier run had used"),
    Earlier("sam_ema", "sam_ema_cost_1.4", "4838b481", "2026-11-23", "a cost of 1.4 assumed for SAM"),
    Earlier("latency", "latency_clip_0.01", "d61fb367", "2026-11-23", "threshold fixed at 0.01"),
    Earlier("latency", "latency_three_thresholds", "8b98ee39", "2026-11-23", "three thresholds"),
    Earlier("transfer", "transfer_first_seeds", "8f1bbaa6", "2026-11-23", "three thresholds"),
    Earlier("clipping_search", "clipping_search_skip_gain_0", "09d6a861", "2026-11-22", "skip gain from 0"),
)  # fmt: skip


def confirmations(judged: Iterable[Any], folder: Path) -> pd.DataFrame:
    """Compute the effect of every confirmation again.

    Args:
        judged: Results of `judging.judged`. Their evidence decides today.
        folder: The committed tables, with those of earlier confirmations.

    Returns:
        One row per confirmation: study, claim (number), date, run, differed, effect, low, high, n, unit, current (yes:
        it decides). Effects in points are multiplied by 100.
    """
    rows = []
    for each in judged:
        claim, evidence = each.claim, each.evidence
        today = {} if evidence is None else evidence.tables
        for earlier in (one for one in EARLIER if one.study == claim.study):
            tables = _tables(claim, earlier.file, today, folder)
            if tables is not None:
                row = _row(claim, claim.judge(tables).effect)
                rows.append(row | {"date": earlier.date, "run": earlier.run, "differed": earlier.differed,
                                   "current": "no"})  # fmt: skip
        if evidence is not None:
            effect = claim.judge(today).effect if claim.claim.also else each.verdict.effect
            rows.append(_row(claim, effect) | {"date": evidence.date, "run": evidence.run[:8],
                                               "differed": AS_DECIDED, "current": "yes"})  # fmt: skip
    columns = ["study", "claim", "date", "run", "differed", "effect", "low", "high", "n", "unit", "current"]
    return pd.DataFrame(rows, columns=columns).astype({"claim": "Int64"})


def _tables(claim: RegisteredClaim, file: str, today: dict[str, pd.DataFrame], folder: Path) -> dict | None:
    """Read the tables of an earlier confirmation. None if there are none."""
    files = {name: folder / f"{file}{'' if name == 'table' else f'_{name}'}.csv" for name in claim.tables}
    kept = {name: pd.read_csv(path) for name, path in files.items() if path.exists()}
    return {**today, **kept} if kept and set(claim.tables) <= {*today, *kept} else None


def _row(claim: RegisteredClaim, effect: Effect) -> dict:
    scale = 100 if effect.in_points else 1
    value = effect.value
    return {"study": claim.study, "claim": claim.number, "effect": scale * value.mean, "low": scale * value.low,
            "high": scale * value.high, "n": value.n, "unit": claim.claim.unit}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How far confirmations agree.

    Attributes:
        n: Their number.
        q: Cochran's Q over those with an interval. NaN for fewer than two of them.
        freedom: Its degrees of freedom.
        p: p-value that all have the same effect.
        i2: I^2, the share of their variance that chance does not explain.
    """

    n: int
    q: float = math.nan
    freedom: int = 0
    p: float = math.nan
    i2: float = math.nan

    @property
    def disagree(self) -> bool:
        """Whether they differ beyond their intervals."""
        return self.p < DISAGREE

    def __str__(self) -> str:
        if math.isnan(self.p):
            return str(self.n)
        return f"{self.n}, {'disagree' if self.disagree else 'agree'} (p = {self.p:.2g})"


def agreement(rows: pd.DataFrame) -> Agreement:
    """Test whether confirmations have one effect (Cochran 1954).

    The standard error is the half-width of the interval over the quantile of Student's t for its n. For intervals of
    shares and of likelihoods this is an approximation.

    Args:
        rows: Rows of `confirmations` of one study.
    """
    from scipy import stats

    known = rows[(rows.n >= FEWEST) & (rows.high > rows.low)]
    if len(known) < 2:
        return Agreement(len(rows))
    errors = (known.high - known.low) / 2 / stats.t.ppf(0.975, known.n.astype(float) - 1)
    weights = 1 / errors**2
    q = float((weights * (known.effect - (weights * known.effect).sum() / weights.sum()) ** 2).sum())
    freedom = len(known) - 1
    i2 = max(0.0, 1 - freedom / q) if q > 0 else 0.0
    return Agreement(len(rows), q, freedom, float(stats.chi2.sf(q, freedom)), i2)


def with_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Add Q, its degrees of freedom and p, and I^2 of each study to the rows of `confirmations`."""
    by_study = {study: agreement(rows) for study, rows in table.groupby("study")}
    columns = {"q": "q", "q_df": "freedom", "q_p": "p", "i2": "i2"}
    return table.assign(**{name: [getattr(by_study[s], field) for s in table.study] for name, field in columns.items()})
