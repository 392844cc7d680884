"""Question: which threshold trains best on your data, and is it better than no clipping?

This is no claim of the paper, but a way to use its claims. Each arm trains at its own best rate.

Contrast: validation accuracy with AGC minus without, paired by seed.

Tables:
    trials: One row per trial of the search. Columns arm (NF+AGC, NF), state, outcome, clip, lr, val_acc.
    confirmed: The best of each arm on fresh seeds. Columns arm, seed, val_acc, lr, clip, failed.
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.failure_line import collapsed
from workbench.lab.statistics.intervals import (
    accuracy_interval,
    difference_p,
    points_with_ci,
    side,
    t_interval,
)
from workbench.lab.statistics.preconditions import TRAINS, none_fails
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.outcomes import FAILURES, PRUNED

CLAIM = Claim(
    "AGC at its best threshold beats no clipping at its own best rate",
    precondition=TRAINS,
    tables=("trials", "confirmed"),
)

GOOD_REGION = 0.02  # validation accuracy below the best that still counts as good


def judge(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether the best clipped point beats the best unclipped one on fresh seeds.

    Args:
        trials: Columns arm (NF+AGC, NF), state, outcome, clip, lr, val_acc.
        confirmed: Columns arm, seed, val_acc, lr, clip, failed. Each arm trains at its own best rate. Seeds are paired.
    """
    if (undecided := nothing_to_compare(confirmed, tried=trials)) is not None:
        return undecided
    values = confirmed.pivot_table(index="seed", columns="arm", values="val_acc")
    table = _details(trials, confirmed)
    if not {"NF+AGC", "NF"} <= set(values):
        missing = "a threshold" if "NF+AGC" not in values else "no clipping"
        effect = Effect("accuracy", t_interval(values.get("NF+AGC", [])))
        return Verdict(None, effect, f"No training with {missing} completed, so nothing can be compared.", table)
    difference = values["NF+AGC"] - values["NF"]
    effect = Effect("accuracy with AGC minus without", t_interval(difference), difference_p(difference), in_points=True)
    holds = side(effect.value)
    relation = {True: "is better than", False: "is worse than", None: "is not shown to differ from"}[holds]
    headline = f"AGC at its best threshold {relation} no clipping at its best rate: {points_with_ci(effect.value)}."
    return Verdict(holds, effect, headline, table).on(none_fails(CLAIM.precondition, confirmed, "NF+AGC", "NF"))


def _details(trials: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm: its best point on fresh seeds, and its good trials.

    The good trials have a range of thresholds.
    """
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


def figure(trials: pd.DataFrame, confirmed: pd.DataFrame, importance: dict[str, float] | None = None) -> Figure:
    """Draw the search and its confirmation on fresh seeds.

    The panels show the trials, slices over threshold and rate, the importance of the parameters, and the fresh seeds.

    Args:
        trials: As for `judge`.
        confirmed: As for `judge`.
        importance: Importance by parameter. Empty if the trials are too few to compute it. None: the tables do not have
            it.
    """
    from workbench.lab import plots

    figure, axes = plots.panels(1, 5, (17, 4.2), width_ratios=[1.3, 1, 1, 0.7, 0.7])
    search, thresholds, rates, importances, fresh = axes
    tried = trials[trials.arm == "NF+AGC"]
    plots.accuracy_map(search, tried.lr, tried["clip"], tried.val_acc, **_ends(tried))
    plots.rate_axis(search)
    plots.log_axis(search.yaxis, "clipping threshold")
    search.set(title="trials with AGC")

    for arm, look in plots.looks(plots.in_order(trials.arm)).items():
        rows = trials[trials.arm == arm]
        if arm == "NF+AGC":
            plots.trials(thresholds, rows["clip"], rows.val_acc, look, arm, **_ends(rows))
        plots.trials(rates, rows.lr, rows.val_acc, look, arm, **_ends(rows))
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
    shares = importance or {}
    importances.barh([names.get(k, k) for k in shares], list(shares.values()), color="0.5", height=0.5)
    importances.set(xlim=(0, 1), xlabel="importance (PED-ANOVA)", title="what mattered")
    if not shares:
        why = "not in the tables" if importance is None else "too few trials"
        importances.text(0.5, 0.5, why, ha="center", transform=importances.transAxes, color="0.4")
        importances.set_yticks([])

    arms = plots.looks(plots.in_order(confirmed.arm))
    for i, (arm, look) in enumerate(arms.items()):
        rows = confirmed[confirmed.arm == arm]
        mean = t_interval(rows.val_acc)
        plots.seeds(fresh, i, rows.val_acc, rows.failed, mean, look, arm, collapsed=collapsed(rows))
    plots.name_axis(fresh.xaxis, list(arms))
    plots.accuracy_axis(fresh, "validation")
    fresh.set(title="fresh seeds")
    plots.legend_outside(figure, columns=8)
    return figure


def _ends(trials: pd.DataFrame) -> dict[str, pd.Series]:
    """Return which trials failed, which of them collapsed, and which were pruned."""
    failed, pruned = trials.outcome.isin(FAILURES), trials.outcome == PRUNED
    return {"failed": failed, "collapsed": collapsed(trials), "pruned": pruned}
