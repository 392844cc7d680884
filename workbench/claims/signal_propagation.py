"""Claim 1: scaled weight standardisation keeps the variance as the theory says, and BatchNorm's trunk grows linearly.

Source: Brock et al. 2021a, signal propagation plots; De and Smith 2020. Table: one row a block, arm, input (noise,
images) and initialisation, with var, mean_sq, residual_var, grad_var and what is expected of each. The contrast: the
largest relative deviation of the trunk's variance from the theory, over blocks, is below 15 %.
"""

import math

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.intervals import Interval, difference_p, share_interval, t_interval, with_ci
from workbench.lab.statistics.verdict import Effect, Verdict, fact
from workbench.probes.rules import broken_rules

CLAIM = Claim("Scaled weight standardisation keeps the variance of the trunk as theory says", number=1)

TOLERANCE = 0.15  # of the expected variance


def judge(table: pd.DataFrame) -> Verdict:
    """Does the measured variance of the normalizer-free trunk follow the theory at every block, on noise? Of a network
    without a theory: does it keep the rules of signal propagation?

    Columns: arm (NF, NF without scaled WS, BN, or a network's own name), input, seed, block, stage, var, mean_sq,
    residual_var, grad_var, dead, expected_var.
    """
    blocks = table[(table.block > 0) & (table.input == "noise")]
    blocks = blocks.assign(deviation=lambda t: (t["var"] / t.expected_var - 1).abs())
    subject = "NF" if "NF" in set(blocks.arm) else blocks.arm.iloc[0]
    of_subject = blocks[blocks.arm == subject]
    if of_subject.expected_var.isna().all():
        return _rules_verdict(table[(table.arm == subject) & (table.input == "noise")], subject)
    deviations = of_subject.groupby("seed").deviation.max()
    worst = t_interval(deviations)
    p = difference_p(deviations - TOLERANCE)
    effect = Effect("largest relative deviation of the variance from theory", worst, p)
    holds = True if worst.high <= TOLERANCE else False if worst.low > TOLERANCE else None
    relation = {True: "follows", False: "leaves", None: "is not shown to follow"}[holds]
    deviation = with_ci(worst.map(lambda value: 100 * value), "% at most", ".1f", "initialisation")
    headline = f"The variance of {subject} {relation} the theory, deviating by {deviation}."
    return Verdict(holds, effect, headline, _details(table, blocks, subject, worst))


def _details(table: pd.DataFrame, blocks: pd.DataFrame, subject: str, worst: Interval) -> pd.DataFrame:
    """One row per fact on the trunk; on noise, unless it names the images."""
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
    """Of a network without a theory: in how many initialisations no rule is broken."""
    broken_by_seed = []
    for _, rows in table.groupby("seed"):
        rows = rows.reset_index(drop=True).assign(peak=0.0)
        broken_by_seed.append({fault.verdict for fault in broken_rules(rows, rows.residual_var == 0, "float32")})
    n = len(broken_by_seed)
    sound = share_interval(sum(not broken for broken in broken_by_seed), n)
    effect = Effect("share of initialisations without a fault", sound)
    share = with_ci(sound.map(lambda value: 100 * value), "% of cases", ".0f", "initialisation")
    headline = f"{subject} has no theory; it breaks no rule of signal propagation in {share}."
    ends = table[table.block == table.block.max()]
    rows = [fact(f"variance after {table.block.max()} blocks", t_interval(ends["var"]))]
    for rule in sorted(set().union(*broken_by_seed)):
        rows.append(fact(f"share that {rule}", share_interval(sum(rule in broken for broken in broken_by_seed), n)))
    return Verdict(not any(broken_by_seed), effect, headline, pd.DataFrame(rows))


def _growth_per_block(blocks: pd.DataFrame) -> float:
    """Mean increase of the variance from one block to the next within a stage."""
    steps = blocks.sort_values("block").groupby("stage")["var"].diff().dropna()
    return float(steps.mean()) if len(steps) else math.nan


def figure(table: pd.DataFrame) -> Figure:
    """Signal propagation on noise: the statistics over depth, forward and backward; points with the range over
    initialisations, dashed lines the theory."""
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
    """What moves signal propagation: a column a factor, the trunk's variance above, the gradient's below; a line a
    value, dashed the theory. Columns: factor, arm (the value of the factor), and those of `judge`."""
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
    """Noise and images: a column an arm, the trunk's variance on each input, dashed what is expected of it."""
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
