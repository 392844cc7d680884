"""Claim 1: scaled weight standardisation keeps the variance as the theory predicts.

The trunk's variance in a BatchNorm network grows linearly. Source: Brock et al. 2021a, signal propagation plots; De and
Smith 2020.

Contrast: the largest relative deviation of the trunk's variance from the theory, over blocks, is below 15 %.

Table:
    table: One row per block, arm, input (noise, images) and initialisation. Columns var, mean_sq, residual_var,
        grad_var, and the expected value of each.
"""

import math

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import Interval, difference_p, share_interval, t_interval, with_ci
from workbench.lab.statistics.verdict import Effect, Precondition, Verdict, fact
from workbench.probes.rules import broken_rules

CLAIM = Claim(
    "Scaled weight standardisation keeps the variance of the trunk as the theory predicts",
    precondition="the theory predicts the variance of every block",
    number=1,
    unit="relative deviation",
)

TOLERANCE = 0.15  # of the expected variance


def judge(table: pd.DataFrame) -> Verdict:
    """Judge whether the variance of the normalizer-free trunk follows the theory at every block.

    Only the rows with noise as input count. A network without a theory must keep the rules of signal propagation
    instead.

    Args:
        table: Columns arm (NF, NF without scaled WS, BN, or the name of your network), input, seed, block, stage, var,
            mean_sq, residual_var, grad_var, dead, expected_var.
    """
    blocks = table[(table.block > 0) & (table.input == "noise")]
    blocks = blocks.assign(deviation=lambda t: (t["var"] / t.expected_var - 1).abs())
    subject = "NF" if "NF" in set(blocks.arm) else blocks.arm.iloc[0]
    subject_blocks = blocks[blocks.arm == subject]
    if subject_blocks.expected_var.isna().all():
        return _rules_verdict(table[(table.arm == subject) & (table.input == "noise")], subject)
    deviations = subject_blocks.groupby("seed").deviation.max()
    worst = t_interval(deviations)
    p = difference_p(deviations - TOLERANCE)
    effect = Effect("largest relative deviation of the variance from theory", worst, p)
    holds = True if worst.high <= TOLERANCE else False if worst.low > TOLERANCE else None
    relation = {True: "follows", False: "does not follow", None: "is not shown to follow"}[holds]
    deviation = with_ci(worst.map(lambda value: 100 * value), "%", ".1f", "initialisation")
    headline = f"The variance of {subject} {relation} the theory: largest deviation {deviation}."
    predicted = int(subject_blocks.expected_var.notna().sum())
    precondition = Precondition(
        CLAIM.precondition, f"{predicted} of {len(subject_blocks)} measurements", predicted == len(subject_blocks)
    )
    return Verdict(holds, effect, headline, _details(table, blocks, subject, worst)).on(precondition)


def _details(table: pd.DataFrame, blocks: pd.DataFrame, subject: str, worst: Interval) -> pd.DataFrame:
    """One row per fact about the trunk, on noise unless the fact names the images."""
    rows = [fact(f"{subject}: largest deviation from the theory", worst, expected=TOLERANCE)]
    for arm, largest in blocks.groupby("arm", sort=False).mean_sq.max().items():
        rows.append(fact(f"{arm}: largest squared channel mean", largest))
    if subject != "BN" and "BN" in set(blocks.arm):
        growth = t_interval([_growth_per_block(t) for _, t in blocks[blocks.arm == "BN"].groupby("seed")])
        rows.append(fact("BN: variance gained per block", growth))
    on_images = table[(table.block > 0) & (table.input == "images") & (table.arm == subject)]
    if len(on_images):
        last = on_images.groupby("seed").tail(1)
        rows.append(
            fact(f"{subject}: final variance on images", t_interval(last["var"]), expected=last.expected_var.mean())
        )
    return pd.DataFrame(rows)


def _rules_verdict(table: pd.DataFrame, subject: str) -> Verdict:
    """Judge a network without a theory: in how many initialisations is no rule broken?"""
    broken_by_seed = []
    for _, rows in table.groupby("seed"):
        rows = rows.reset_index(drop=True).assign(peak=0.0)
        broken_by_seed.append({fault.verdict for fault in broken_rules(rows, rows.residual_var == 0, "float32")})
    n = len(broken_by_seed)
    sound = share_interval(sum(not broken for broken in broken_by_seed), n)
    effect = Effect("share of initialisations without a fault", sound)
    share = with_ci(sound.map(lambda value: 100 * value), "% of cases", ".0f", "initialisation")
    headline = f"Without a theory, {subject} breaks no rule of signal propagation in {share}."
    ends = table[table.block == table.block.max()]
    rows = [fact(f"variance after {table.block.max()} blocks", t_interval(ends["var"]))]
    for rule in sorted(set().union(*broken_by_seed)):
        rows.append(fact(f"share that {rule}", share_interval(sum(rule in broken for broken in broken_by_seed), n)))
    return Verdict(not any(broken_by_seed), effect, headline, pd.DataFrame(rows))


def _growth_per_block(blocks: pd.DataFrame) -> float:
    """Return the mean increase of the variance from one block to the next within a stage."""
    steps = blocks.sort_values("block").groupby("stage")["var"].diff().dropna()
    return float(steps.mean()) if len(steps) else math.nan


def figure(table: pd.DataFrame) -> Figure:
    """Draw the statistics of signal propagation on noise over depth, forward and backward.

    Points have the range over initialisations. Dashed lines are the theory.
    """
    from workbench.lab import plots

    figure, axes = plots.panels(1, 4, (15.5, 3.8))
    shown = table[table.input == "noise"]
    for ax, (column, title) in zip(axes, plots.SIGNALS.items(), strict=True):
        for arm, look in plots.looks(plots.in_order(shown.arm)).items():
            plots.over_depth(ax, shown[shown.arm == arm], column, arm, look)
        plots.depth_axis(ax, shown, column)
        ax.set(title=title)
    if shown.expected_var.notna().any():
        axes[0].plot([], [], "--", color="0.4", lw=1, label="theory")
    plots.legend_outside(figure)
    return figure


def effects_figure(table: pd.DataFrame) -> Figure:
    """Draw what changes signal propagation: one column per factor, one line per value.

    The upper row has the trunk's variance, the lower row the gradient's. Dashed lines are the theory.

    Args:
        table: Columns factor, arm (the value of the factor), and those of `judge`.
    """
    from workbench.lab import plots

    factors = list(dict.fromkeys(table.factor))
    figure, axes = plots.panels(2, len(factors), (1 + 2.6 * len(factors), 5.8))
    for top, bottom, factor in zip(axes[: len(factors)], axes[len(factors) :], factors, strict=True):
        rows = table[table.factor == factor]
        for ax, column in ((top, "var"), (bottom, "grad_var")):
            for value, look in plots.ordered_looks(dict.fromkeys(rows.arm)).items():
                plots.over_depth(ax, rows[rows.arm == value], column, value, look)
            plots.depth_axis(ax, rows, column)
        top.set(title=factor.replace("_", " "), xlabel="")
        top.legend(frameon=False, fontsize="x-small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.1))
    axes[0].set_ylabel("variance of the trunk")
    axes[len(factors)].set_ylabel("variance of the gradient")
    return figure


def inputs_figure(table: pd.DataFrame) -> Figure:
    """Draw the trunk's variance on noise and on images, one column per arm.

    Dashed lines are the expected values for each input.
    """
    from workbench.lab import plots

    arms = plots.in_order(table.arm)
    figure, axes = plots.panels(1, len(arms), (1 + 3.4 * len(arms), 3.6), sharey=True)
    for ax, arm in zip(axes, arms, strict=True):
        rows = table[table.arm == arm]
        for name, look in plots.looks(("noise", "images")).items():
            plots.over_depth(ax, rows[rows.input == name], "var", name, look)
        plots.depth_axis(ax, rows, "var")
        ax.set(title=arm)
    axes[0].set_ylabel("variance of the trunk")
    axes[0].plot([], [], "--", color="0.4", lw=1, label="expected of that input")
    plots.legend_outside(figure)
    return figure
