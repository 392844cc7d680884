"""Figures over all claims: every confirmation that ever ran, and the accuracies at which everything takes place."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.confirmations import agreement
from workbench.claims.registry import RegisteredClaim
from workbench.lab.statistics.preconditions import TRAINED_OUT

OLDER = "0.6"


def forest(table: pd.DataFrame) -> Figure:
    """Draw all confirmations, one panel per unit. Those that decide are in colour, older ones in grey.

    Args:
        table: As `confirmations` returns it.
    """
    from workbench.lab import plots

    table = table.dropna(subset="effect").reset_index(drop=True)
    units = list(dict.fromkeys(table.sort_values("claim", kind="stable").unit))
    heights = [len(rows) + 2 * rows.study.nunique() for rows in (table[table.unit == unit] for unit in units)]
    figure, axes = plots.panels(len(units), 1, (10, 1.0 * len(units) + 0.21 * sum(heights)), height_ratios=heights)
    for ax, unit in zip(axes, units, strict=True):
        rows = table[table.unit == unit].sort_values("claim", kind="stable")
        _panel(ax, rows)
        ax.set(xlabel=unit)
    plots.legend_outside(figure)
    return figure


def _panel(ax: Any, rows: pd.DataFrame) -> None:
    from workbench.lab import plots

    y, ticks = 0, {}
    decides, older = plots.Look(plots.LOOKS[0].color, "s"), plots.Look(OLDER, "o")
    for _, each in rows.groupby("study", sort=False):
        ticks[y] = _heading(each)
        ax.axhspan(y - 0.5, y + 0.5, color="0.95", lw=0, zorder=0)
        for row in each.sort_values(["current", "date"], ascending=[False, True]).itertuples():
            y += 1
            look, label = (decides, "decides today") if row.current == "yes" else (older, "earlier")
            plots.intervals(ax, y, row.effect, row.low, row.high, look, across=True, label=label)
            ticks[y] = f"{row.date}, {row.run}, n = {row.n}: {row.differed}"
        y += 2
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize="x-small")
    for tick in ax.get_yticklabels():
        if tick.get_text().endswith(":"):
            tick.set_fontweight("bold")
    ax.set_ylim(y - 0.8, -0.8)
    ax.axvline(0, color="0.3", lw=0.8)


def _heading(each: pd.DataFrame) -> str:
    first, agreed = each.iloc[0], agreement(each)
    number = "question" if pd.isna(first.claim) else f"claim {first.claim}"
    if np.isnan(agreed.p):
        return f"{number}, {first.study}:"
    q = f"Q = {agreed.q:.1f} on {agreed.freedom} df, p = {agreed.p:.2g}, I² = {agreed.i2:.0%}"
    return f"{number}, {first.study}; {q}:"


def accuracies(judged: Iterable[Any]) -> Figure:
    """Draw the validation accuracy of every training that decides a claim or a question.

    Args:
        judged: Results of `judging.judged`.
    """
    from workbench.lab import plots

    drawn = [(each.claim, table) for each in judged if each.evidence for table in [_deciding(each)] if len(table)]
    figure, (ax,) = plots.panels(1, 1, (9, 1.5 + 0.36 * len(drawn)))
    looks = {"BN": plots.ARM_LOOKS["BN"], "NF+AGC": plots.ARM_LOOKS["NF+AGC"], "other arms": plots.Look(OLDER, ".")}
    rng = np.random.default_rng(0)
    for y, (_, table) in enumerate(drawn):
        arms = table.arm.where(table.arm.isin(["BN", "NF+AGC"]), "other arms")
        for arm in ("other arms", "NF+AGC", "BN"):
            values = 100 * table.val_acc[arms == arm]
            at = y + rng.uniform(-0.25, 0.25, len(values))
            look = looks[arm]
            ax.plot(values, at, look.marker, ms=3, color=look.color, alpha=0.6, ls="none", label=arm)
    ax.axvline(
        100 * TRAINED_OUT, color="0.3", ls="--", lw=1, label=f"BatchNorm counts as trained out: {TRAINED_OUT:.0%}"
    )
    ax.axvline(10, color="0.3", ls=":", lw=1, label="guessing")
    plots.name_axis(ax.yaxis, [_name(claim) for claim, _ in drawn])
    ax.set(xlim=(0, 100), xlabel="validation accuracy, %")
    plots.legend_outside(figure)
    return figure


def _deciding(judged: Any) -> pd.DataFrame:
    """Return the trainings that decide: the last table with accuracies. Empty if the claim trains nothing."""
    tables = [table for table in judged.evidence.tables.values() if {"val_acc", "seed", "outcome"} <= set(table)]
    return tables[-1] if tables else pd.DataFrame()


def _name(claim: RegisteredClaim) -> str:
    return claim.study if claim.number is None else f"{claim.number}, {claim.study}"
