"""Claim 8: what each part of an NFNet is worth, and whether it pays for its time.

Source: NFNet paper, section 4 and table 2 (width pattern, second 3x3 convolution, augmentation). Squeeze-excite,
stochastic depth, skip gain and activation are the rest of the recipe. Each arm leaves out one part. All arms have as
many trials.

Contrast: at equal time, test accuracy of the whole net minus that of the net without a part, for each part.
Differences are paired by seed, and the parts form one family under Holm's adjustment. The claim holds if every part is
shown to pay. It does not hold if a part is shown to cost accuracy. The arm with skip gains from 0 has the paper's
choice instead of ours. So it leaves out no part and is not in the family. This contrast replaced the mean over parts
after their confirmation, because the mean mixes parts of opposite sign.

Tables:
    costs: Times of a step, as `step_costs` returns them. Columns arm, cost, low, high.
    screened: One row per training at equal time. Columns arm, lr, seed, outcome, val_acc.
    confirmed: Each arm at its own best rate, on fresh seeds. Columns protocol (equal time, equal steps), arm, lr,
        steps, seed, test_acc, outcome.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import compare_arms, details
from workbench.lab.statistics.intervals import below_p, beyond_p, holm, points_with_ci, t_interval
from workbench.lab.statistics.panels import draw_differences
from workbench.lab.statistics.preconditions import GAP, overfits
from workbench.lab.statistics.rates import by_seed, with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "Every part of the NFNet recipe pays for its time",
    precondition=f"without augmentation, {GAP}",
    number=8,
    tables=("costs", "screened", "confirmed"),
)

WHOLE = "whole net"
PAPERS_START = "skip gain from 0"  # the paper's choice, so no part is left out
STARTS = (PAPERS_START, "skip gain from 1")
PLAIN = "no augmentation"  # its training loss is not mixed
TIME, STEPS = "equal time", "equal steps"


def summary(costs: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """Compare each arm with the whole net under each protocol.

    Returns:
        One row per protocol and arm. Columns: the step's cost, lr, steps, accuracy, difference to the whole net with
        low, high, p, p_holm (over the parts) and p_equal, failed, n.
    """
    tables = [
        compare_arms(rows, WHOLE, settings=("lr", "steps"), contrast=PAPERS_START).assign(protocol=protocol)
        for protocol, rows in confirmed.groupby("protocol", sort=False)
    ]
    return pd.concat(tables, ignore_index=True).merge(costs[["arm", "cost"]], on="arm", how="left")


def matched_cost(confirmed: pd.DataFrame) -> pd.Series:
    """Return by arm the step time at which its number of steps is equal time.

    The time is relative to the whole net. It was measured in this run or in an earlier one.
    """
    steps = confirmed[confirmed.protocol == TIME].groupby("arm", sort=False).steps.first()
    return steps.get(WHOLE, math.nan) / steps


def judge(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether every part is worth its time. The effect is that of the part that is worth least."""
    timed = confirmed[confirmed.protocol == TIME]
    if (undecided := nothing_to_compare(timed, *dict.fromkeys([WHOLE, *timed.arm]), tried=screened)) is not None:
        return undecided
    values = by_seed(timed)
    parts = values.drop(columns=[WHOLE, *STARTS], errors="ignore")
    worth = {part: (values[WHOLE] - parts[part]).dropna() for part in parts}
    least = min(worth, key=lambda part: worth[part].mean())
    all_pay = float(np.max([below_p(-each, 0.0) for each in worth.values()]))  # NaN if one of them is
    costs_most = holm([beyond_p(each, 0.0) for each in worth.values()])[list(worth).index(least)]
    costs_most = costs_most if worth[least].mean() < 0 else 1.0
    holds = True if all_pay < 0.05 else False if costs_most < 0.05 else None
    name = f"whole net minus the net with “{least}”"
    effect = Effect(name, t_interval(worth[least]), min(all_pay, costs_most), in_points=True)
    relation = {True: "All parts pay for their time", False: "Not all parts pay for their time",
                None: "Not every part is shown to pay for its time"}[holds]  # fmt: skip
    headline = f"{relation}: the least is worth {points_with_ci(effect.value)}."
    verdict = Verdict(holds, effect, headline, with_edges(_details(costs, confirmed), screened))
    return verdict.on(overfits(CLAIM.precondition, timed, PLAIN if PLAIN in values else WHOLE))


def _details(costs: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: the difference to the whole net at equal time, and at equal steps."""
    by_protocol = {protocol: rows for protocol, rows in summary(costs, confirmed).groupby("protocol")}
    timed = by_protocol[TIME].assign(matched_cost=lambda t: t.arm.map(matched_cost(confirmed)))
    table = details(timed, "cost", "matched_cost")
    if STEPS in by_protocol:
        stepped = by_protocol[STEPS].set_index("arm")
        table["points_equal_steps"] = table.arm.map(100 * stepped.difference)
        table["p_holm_equal_steps"] = table.arm.map(stepped.p_holm)
    return table


def figure(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw accuracy compared with the whole net under each protocol, and how equal the times were.

    Numbers of steps follow from costs that were measured before. The right panel has the time of an arm's steps by the
    costs that this run measured.
    """
    from workbench.lab import plots

    names = [arm for arm in dict.fromkeys(confirmed.arm) if arm != WHOLE]
    protocols = list(dict.fromkeys(confirmed.protocol))
    size = (5.5 + 3.7 * len(protocols), 1.9 + 0.36 * len(names))
    figure, axes = plots.panels(1, len(protocols) + 1, size, sharey=True)
    titles = {TIME: "steps meant for equal time"}
    for ax, protocol in zip(axes, protocols, strict=False):
        draw_differences(ax, confirmed[confirmed.protocol == protocol], WHOLE, names)
        ax.set(title=titles.get(protocol, protocol))
    cost, lines = costs.set_index("arm").reindex(names), range(len(names))
    taken = cost[["cost", "low", "high"]].div(matched_cost(confirmed).reindex(names), axis=0)
    label = "by the costs of this run, range over rounds"
    plots.intervals(
        axes[-1], lines, taken.cost, taken.low, taken.high, plots.Look("0.3", "D"), across=True, label=label
    )
    axes[-1].axvline(1, color="0.3", lw=0.8)
    axes[-1].set(title="how equal it was", xlabel="time of all steps over the whole net's")
    plots.legend_outside(figure, columns=6)
    return figure
