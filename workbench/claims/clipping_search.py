"""Which threshold trains best on data of one's own, and is it better than no clipping at its own best rate?

Not one of the paper's claims, but their use. Tables: `trials`, one row a trial of the search, with arm (NF+AGC, NF),
state, outcome, clip, lr, val_acc; `confirmed`, the best of each arm on fresh seeds, with arm, seed, val_acc, lr, clip,
failed. The contrast: validation accuracy with AGC minus without, paired by seed.
"""

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
    from workbench.lab import plots

    figure, axes = plots.panels(1, 5, (17, 4.2), width_ratios=[1.3, 1, 1, 0.7, 0.7])
    where, thresholds, rates, what_mattered, fresh = axes
    pruned, failed = trials.outcome == "pruned", trials.outcome == "diverged"
    agc = trials.arm == "NF+AGC"
    tried = trials[agc]
    plots.accuracy_map(where, tried.lr, tried["clip"], tried.val_acc, failed=failed[agc], pruned=pruned[agc])
    plots.rate_axis(where)
    plots.log_axis(where.yaxis, "clipping threshold")
    where.set(title="trials with AGC")

    for arm, look in plots.looks(plots.in_order(trials.arm)).items():
        rows = trials[trials.arm == arm]
        ended = {"failed": failed[rows.index], "pruned": pruned[rows.index]}
        if arm == "NF+AGC":
            plots.trials(thresholds, rows["clip"], rows.val_acc, look, arm, **ended)
        plots.trials(rates, rows.lr, rows.val_acc, look, arm, **ended)
    plain = trials[(trials.arm == "NF") & (trials.outcome == "complete")]
    if not plain.empty:
        color = plots.ARM_LOOKS["NF"].color
        thresholds.axhline(plain.val_acc.max(), color=color, ls="--", lw=1, label="best without clipping")
    plots.log_axis(thresholds.xaxis, "clipping threshold")
    plots.rate_axis(rates)
    plots.accuracy_axis(thresholds, "validation")
    thresholds.set(title="slice: threshold")
    rates.set(title="slice: rate")
    rates.sharey(thresholds)
    for ax in (thresholds, rates):
        ax.tick_params(axis="x", rotation=45)

    names = {"clip": "threshold", "base_lr": "learning\nrate"}
    what_mattered.barh([names.get(k, k) for k in importance], list(importance.values()), color="0.5", height=0.5)
    what_mattered.set(xlim=(0, 1), xlabel="importance (PED-ANOVA)", title="what mattered")
    if not importance:
        what_mattered.text(0.5, 0.5, "too few trials", ha="center", transform=what_mattered.transAxes, color="0.4")
        what_mattered.set_yticks([])

    arms = plots.looks(plots.in_order(confirmed.arm))
    for i, (arm, look) in enumerate(arms.items()):
        rows = confirmed[confirmed.arm == arm]
        plots.seeds(fresh, i, rows.val_acc, rows.failed, t_interval(rows.val_acc), look, arm)
    plots.name_axis(fresh.xaxis, list(arms))
    plots.accuracy_axis(fresh, "validation")
    fresh.set(title="fresh seeds")
    plots.legend_outside(figure, columns=8)
    return figure
