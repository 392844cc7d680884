"""Question: does the paper's protocol favour NF+AGC, compared with equal tuning of all arms?

This is no claim of the paper, but the way in which the paper compares arms (NFNet paper, section 4.1 and figure 2). It
scales rates linearly with the batch, takes the best of five thresholds, and averages the best four of five seeds.

Contrast, written down before the confirmation: test accuracy of NF+AGC minus that of BN under the paper's protocol,
minus the same difference under the tuned protocol. All differences are paired by seed.

Tables:
    screened: One row per training. Columns arm (BN, NF, NF+AGC), clip, batch_size, lr, seed, failed, val_acc.
    confirmed: Each arm at the largest batch as each protocol chose it, on fresh seeds. Columns protocol, arm, clip,
        seed, failed, val_acc, test_acc.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import (
    accuracy_interval,
    best_four_of_five,
    difference_p,
    points_with_ci,
    side,
    t_interval,
)
from workbench.lab.statistics.preconditions import BATCHNORM, batchnorm_trained_out
from workbench.lab.statistics.rates import at_carried_rate, by_seed
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim(
    "The paper's protocol favours NF+AGC over BN, compared with tuning both alike",
    precondition=BATCHNORM,
    tables=("screened", "confirmed"),
)

PAPER, TUNED = "paper's", "tuned"
PROTOCOLS = {PAPER: best_four_of_five, TUNED: np.mean}  # how each averages the screening seeds
ARMS = ("BN", "NF", "NF+AGC")


def rates(lrs: list[float], batch_sizes: list[int]) -> dict[int, list[float]]:
    """Return by batch size the grid's rates, and these rates scaled from the smallest batch."""
    return {b: sorted({float(f"{lr * scale:.6g}") for lr in lrs for scale in (1, b / min(batch_sizes))})
            for b in batch_sizes}  # fmt: skip


def choices(screened: pd.DataFrame) -> pd.DataFrame:
    """Choose rate and threshold of each arm and batch by both protocols.

    - paper's: the arm's best rate at the smallest batch, scaled in proportion to the batch, and the best threshold at
      that rate. Four of five seeds count.
    - tuned: the best rate and threshold of each batch, by the mean of all seeds.

    Returns:
        Columns protocol, batch_size, arm, clip, lr, and `reported`: the validation accuracy that decided, of the
        screening seeds.
    """
    rows = []
    for _, trained in screened.groupby("arm", sort=False):
        for protocol, sum_up in PROTOCOLS.items():
            cells = trained.groupby(["batch_size", "arm", "clip", "lr"], sort=False, dropna=False).val_acc
            reported = cells.agg(lambda values, sum_up=sum_up: float(sum_up(values))).rename("reported").reset_index()
            for batch, at in reported.groupby("batch_size"):
                if protocol == PAPER:
                    at = at_carried_rate(reported, batch, "reported")
                rows.append({"protocol": protocol} | at.loc[at.reported.idxmax()].to_dict())
    return pd.DataFrame(rows)


def largest_batch(screened: pd.DataFrame) -> pd.DataFrame:
    """Return the choices of both protocols at the largest batch, which fresh seeds confirm."""
    chosen = choices(screened)
    return chosen[chosen.batch_size == chosen.batch_size.max()].reset_index(drop=True)


def summary(screened: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """Compare what each protocol reports at the largest batch with fresh seeds.

    Returns:
        One row per arm and protocol:

        - arm, protocol, clip, lr
        - reported: the validation accuracy of the screening seeds
        - validation: the mean over fresh seeds
        - flattered, low, high: reported minus validation, with its interval
        - test, test_low, test_high: the mean over fresh seeds, with its interval
        - failed, n
    """
    rows = []
    for row in largest_batch(screened).itertuples():
        fresh = confirmed[(confirmed.arm == row.arm) & (confirmed.protocol == row.protocol)]
        flattered, test = t_interval(row.reported - fresh.val_acc), accuracy_interval(fresh.test_acc)
        rows.append(
            {
                "arm": row.arm, "protocol": row.protocol, "clip": row.clip, "lr": row.lr,
                "reported": row.reported, "validation": fresh.val_acc.mean(), "flattered": flattered.mean,
                "low": flattered.low, "high": flattered.high, "test": test.mean, "test_low": test.low,
                "test_high": test.high, "failed": int(fresh.failed.sum()), "n": len(fresh),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether the paper's protocol favours NF+AGC over BN, compared with equal tuning."""
    if (undecided := nothing_to_compare(confirmed, "NF+AGC", "BN", tried=screened)) is not None:
        return undecided
    difference = (_ahead(confirmed, PAPER, "BN") - _ahead(confirmed, TUNED, "BN")).dropna()
    name = "NF+AGC minus BN under the paper's protocol, minus the same tuned"
    effect = Effect(name, t_interval(difference), difference_p(difference), in_points=True)
    holds = side(effect.value)
    relation = {True: "favours NF+AGC over BN", False: "favours BN over NF+AGC",
                None: "is not shown to favour NF+AGC or BN"}[holds]  # fmt: skip
    headline = f"The paper's protocol {relation}, compared with tuning: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, _details(screened, confirmed)).on(
        batchnorm_trained_out(CLAIM.precondition, confirmed)
    )


def _details(screened: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm and protocol at the largest batch: the report, and fresh seeds.

    `agc_ahead` is the test accuracy of NF+AGC minus that of this arm, in points.
    """
    columns = ["arm", "protocol", "clip", "lr", "reported", "validation", "test", "failed", "n"]
    rows = summary(screened, confirmed)[columns]
    ahead = [t_interval(100 * _ahead(confirmed, row.protocol, row.arm)) for row in rows.itertuples()]
    table = rows.assign(agc_ahead=[a.mean for a in ahead], low=[a.low for a in ahead], high=[a.high for a in ahead])
    table.loc[table.arm == "NF+AGC", ["agc_ahead", "low", "high"]] = np.nan
    return table


def _ahead(confirmed: pd.DataFrame, protocol: str, rival: str) -> pd.Series:
    """Return by seed the test accuracy of NF+AGC minus that of the rival."""
    values = by_seed(confirmed[confirmed.protocol == protocol])
    return (values["NF+AGC"] - values[rival]).dropna()


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw each split on its own axis: test accuracy, and validation accuracy with what was reported.

    The right panel shows how much more each protocol reports than fresh seeds reach on the same split. Intervals are at
    95 %. A cross marks arms with failed seeds.
    """
    from workbench.lab import plots

    rows = summary(screened, confirmed)
    arms = [arm for arm in ARMS if arm in set(rows.arm)]
    figure, (test, validation, flattered) = plots.panels(1, 3, (13, 4.2))
    for shift, (protocol, look) in zip((-0.12, 0.12), plots.looks(PROTOCOLS).items(), strict=True):
        at = rows[rows.protocol == protocol].set_index("arm").loc[arms]
        x, lost = np.arange(len(arms)) + shift, (at.failed > 0).to_numpy()
        plots.intervals(test, x, at.test, at.test_low, at.test_high, look, label=f"{protocol} protocol")
        plots.mark_failed(test, x[lost], at.test[lost])
        fresh = confirmed[confirmed.protocol == protocol].groupby("arm").val_acc
        seen = pd.DataFrame([accuracy_interval(fresh.get_group(arm)) for arm in arms])
        plots.intervals(validation, x, seen["mean"], seen.low, seen.high, look)
        validation.plot(x, at.reported, "_", ms=16, mew=1.6, color=look.color, alpha=0.8)
        in_points = (100 * at[name] for name in ("flattered", "low", "high"))
        plots.intervals(flattered, x, *in_points, look)
    validation.plot([], [], "_", ms=16, mew=1.6, color="0.4", label="as the protocol reports it")
    flattered.axhline(0, color="0.3", lw=0.8)
    test.set(title=f"batch {screened.batch_size.max()}, fresh seeds, test split")
    validation.set(title="validation split: fresh seeds, and as reported")
    flattered.set(title="reported minus fresh seeds", ylabel="validation accuracy, points")
    plots.accuracy_axis(test, "test")
    plots.accuracy_axis(validation, "validation")
    for ax in (test, validation, flattered):
        plots.name_axis(ax.xaxis, arms)
    plots.legend_outside(figure)
    return figure
