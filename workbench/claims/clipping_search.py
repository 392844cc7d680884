"""Which threshold trains best on data of one's own, and is it better than no clipping at its own best rate?

Not one of the paper's claims, but their use. Tables: `trials`, one row a trial of the search, with arm (NF+AGC, NF),
state, outcome, clip, lr, val_acc; `confirmed`, the best of each arm on fresh seeds, with arm, seed, val_acc, lr, clip,
failed. The contrast: validation accuracy with AGC minus without, paired by seed.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import (
    accuracy_interval,
    difference_p,
    points_with_ci,
    side,
    t_interval,
)
from workbench.lab.statistics.verdict import Effect, Verdict

CLAIM = Claim("AGC at its best threshold beats no clipping at its own best rate", tables=("trials", "confirmed"))

GOOD_REGION = 0.02  # validation accuracy below the best that still counts as good


def judge(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Does the best clipped point beat the best unclipped one, each at its own best rate, on fresh seeds?

    `trials`: arm (NF+AGC, NF), state, outcome, clip, lr, val_acc. `confirmed`: arm, seed, val_acc, lr, clip, failed;
    the seeds are paired.
    """
    values = confirmed.pivot_table(index="seed", columns="arm", values="val_acc")
    table = _details(trials, confirmed)
    if not {"NF+AGC", "NF"} <= set(values):
        missing = "a threshold" if "NF+AGC" not in values else "no clipping"
        effect = Effect("accuracy", t_interval(values.get("NF+AGC", [])))
        return Verdict(None, effect, f"No training with {missing} completed, so there is no comparison.", table)
    difference = values["NF+AGC"] - values["NF"]
    effect = Effect("accuracy with AGC minus without", t_interval(difference), difference_p(difference), in_points=True)
    holds = side(effect.value)
    relation = {True: "is better than", False: "is worse than", None: "is not shown to differ from"}[holds]
    headline = f"AGC at its best threshold {relation} no clipping at its best rate: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, table)


def _details(trials: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: its best point on fresh seeds, and its good trials with their range of thresholds."""
    done = trials[(trials.state == "COMPLETE") & (trials.outcome == "complete")]
    rows = []
    for arm, trained in confirmed.groupby("arm", sort=False):
        accuracy, completed, first = accuracy_interval(trained.val_acc), done[done.arm == arm], trained.iloc[0]
        good = completed[completed.val_acc >= completed.val_acc.max() - GOOD_REGION]
        rows.append(
            {"arm": arm, "batch_size": first.batch_size, "lr": first.lr, "clip": first["clip"],
             "accuracy": accuracy.mean, "low": accuracy.low, "high": accuracy.high, "n": accuracy.n,
             "good_trials": len(good), "trials": len(completed), "smallest_good_clip": good["clip"].min(),
             "largest_good_clip": good["clip"].max()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def figure(trials: pd.DataFrame, confirmed: pd.DataFrame, importance: dict[str, float]) -> Figure:
    """The search: where it looked and how that went, slices over threshold and rate, importance, and the confirmation
    on fresh seeds."""
    import matplotlib.pyplot as plt

    from workbench.lab import plots

    plots.style()
    figure, axes = plt.subplots(1, 5, figsize=(17, 3.8), layout="constrained", width_ratios=[1.3, 1, 1, 0.7, 0.7])
    agc = trials[trials.arm == "NF+AGC"]
    done, pruned, diverged = (agc[agc.outcome == o] for o in ("complete", "pruned", "diverged"))

    ax = axes[0]
    points = ax.scatter(
        done.lr, done["clip"], c=done.val_acc, cmap="viridis", s=45, label="complete", edgecolors="none"
    )
    ax.scatter(pruned.lr, pruned["clip"], marker="v", s=40, facecolors="none", edgecolors="0.4", label="pruned")
    ax.scatter(diverged.lr, diverged["clip"], marker="x", s=45, color="#d55e00", label="diverged")
    ax.set(
        xscale="log", yscale="log", xlabel="peak learning rate", ylabel="clipping threshold", title="trials with AGC"
    )
    for axis in (ax.xaxis, ax.yaxis):
        plots.plain_log_ticks(axis)
    figure.colorbar(points, ax=ax, label="validation accuracy")
    ax.legend(frameon=False, fontsize="small", loc="best")

    _slice(axes[1], agc, "clip", "NF+AGC")
    plain = trials[(trials.arm == "NF") & (trials.outcome == "complete")]
    if not plain.empty:
        axes[1].axhline(plain.val_acc.max(), color=plots.COLOURS["NF"], ls="--", lw=1, label="best without clipping")
    axes[1].set(xlabel="clipping threshold", ylabel="validation accuracy", title="slice: threshold")
    axes[1].legend(frameon=False, fontsize="small")
    for arm in plots.arms_of(trials):
        _slice(axes[2], trials[trials.arm == arm], "lr", arm)
    axes[2].set(xlabel="peak learning rate", title="slice: rate")
    axes[2].sharey(axes[1])
    axes[2].legend(frameon=False, fontsize="small")

    ax = axes[3]
    names = {"clip": "threshold", "base_lr": "learning\nrate"}
    ax.barh([names.get(k, k) for k in importance], list(importance.values()), color="0.5", height=0.5)
    ax.set(xlim=(0, 1), xlabel="importance (PED-ANOVA)", title="what mattered")
    if not importance:
        ax.text(0.5, 0.5, "too few trials", ha="center", transform=ax.transAxes, color="0.4")
        ax.set_yticks([])

    ax = axes[4]
    _seeds(ax, confirmed)
    ax.set(title="fresh seeds")
    return figure


def _slice(ax, trials: pd.DataFrame, column: str, arm: str) -> None:
    """Accuracy over one parameter, whatever the others were; pruned and diverged trials are marked."""
    from workbench.lab import plots

    marks = {"complete": {"s": 30}, "pruned": {"marker": "v", "s": 30}, "diverged": {"marker": "x", "s": 35}}
    for outcome, mark in marks.items():
        rows = trials[trials.outcome == outcome]
        colour = plots.COLOURS[arm]
        hollow = {"facecolors": "none", "edgecolors": colour} if outcome == "pruned" else {"color": colour}
        if len(rows):
            ax.scatter(rows[column], rows.val_acc, label=f"{arm}, {outcome}", **mark, **hollow)
    ax.set_xscale("log")
    plots.plain_log_ticks(ax.xaxis)
    ax.tick_params(axis="x", rotation=45)


def _seeds(ax, rows: pd.DataFrame) -> None:
    """Each seed as a point, failures as crosses, the mean with its 95 % t-interval beside them."""
    from workbench.lab import plots

    for i, arm in enumerate(plots.arms_of(rows)):
        t = rows[rows.arm == arm]
        ok, failed = t[t.failed == 0], t[t.failed == 1]
        ax.plot(np.full(len(ok), i), ok.val_acc, plots.MARKERS[arm], color=plots.COLOURS[arm], alpha=0.6)
        ax.plot(np.full(len(failed), i), failed.val_acc, "x", color=plots.COLOURS[arm])
        interval = t_interval(t.val_acc)
        if not np.isnan(interval.low):
            ax.errorbar(
                i + 0.2,
                interval.mean,
                [[interval.mean - interval.low], [interval.high - interval.mean]],
                fmt="_",
                color="black",
                capsize=3,
            )
    ax.set_xticks(range(len(plots.arms_of(rows))), plots.arms_of(rows))
    ax.set(xlim=(-0.5, len(plots.arms_of(rows)) - 0.3), ylabel="validation accuracy")
