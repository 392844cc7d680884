"""Claim 9: what SAM and the average of the weights (EMA) add at equal device seconds.

SAM is sharpness-aware minimisation. Source: NFNet paper, section 4 (EMA; SAM on a fifth of the batch).

An average and the training that it comes from are one training, read twice. By its measured cost, SAM takes fewer
steps. One arm takes SAM with as many steps as plain. It shows how much of the difference is due to the missing steps.

Contrast, written down before the confirmation: test accuracy of SAM+EMA minus plain, paired by seed.

Tables:
    costs: Times of a step, as `step_costs` returns them.
    screened: One row per training and arm (those of ARMS). Columns arm, lr, seed, steps, failed, val_acc,
        device_seconds.
    confirmed: As `screened`, with test_acc. Each arm trains at its own best rate, on fresh seeds.
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.claims.preconditions import GAP, overfits
from workbench.lab.statistics.effects import compare_arms, details, effect_of
from workbench.lab.statistics.intervals import accuracy_interval, points_with_ci, side
from workbench.lab.statistics.panels import draw_differences
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "SAM and the average of the weights add accuracy at equal time",
    precondition=f"without both, {GAP}",
    number=9,
    tables=("costs", "screened", "confirmed"),
)

AVERAGED = {"plain": "EMA", "SAM": "SAM+EMA"}  # arm: its name when its average is read
LONGER = "SAM, equal steps"
ARMS = ["plain", "EMA", "SAM", "SAM+EMA", LONGER]


def decay(steps: int, share: float) -> float:
    """Return the decay of an average with a horizon of this share of the steps.

    The decay is 1 - 1 / (share * steps).
    """
    return 1 - 1 / max(1.0, share * steps)


def summary(confirmed: pd.DataFrame) -> pd.DataFrame:
    """Compare each arm with plain training.

    Returns:
        One row per arm. Columns: lr (its best rate), steps, device_seconds and accuracy (means), failed, n, and the
        difference to plain with low, high, p, p_holm and p_equal.
    """
    seconds = confirmed.groupby("arm").device_seconds.mean()
    table = compare_arms(confirmed, "plain", ARMS, settings=("lr", "steps"), contrast="SAM+EMA")
    return table.assign(device_seconds=table.arm.map(seconds))


def judge(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether SAM and EMA together add accuracy at equal time. The table has each alone."""
    if (undecided := nothing_to_compare(confirmed, "plain", "SAM+EMA", tried=screened)) is not None:
        return undecided
    effect = effect_of("accuracy with SAM and EMA minus plain", confirmed, "plain", "SAM+EMA")
    holds = side(effect.value)
    relation = {True: "add", False: "cost", None: "are not shown to change"}[holds]
    headline = f"At equal time SAM and EMA together {relation} accuracy: {points_with_ci(effect.value)}."
    verdict = Verdict(holds, effect, headline, with_edges(_details(costs, confirmed), screened))
    return verdict.on(overfits(CLAIM.precondition, confirmed, "plain"))


def _details(costs: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, with its costs relative to plain.

    `matched_cost` is the step time at which the arm's steps take plain's time. `step_cost` is the measured one.
    `seconds` are the device seconds over plain's.
    """
    rows = summary(confirmed)
    plain = rows.set_index("arm").loc["plain"]
    more = rows.assign(
        matched_cost=plain.steps / rows.steps,
        step_cost=rows.arm.map(costs.set_index("arm").cost),
        seconds=rows.device_seconds / plain.device_seconds,
    )
    return details(more, "lr", "steps", "matched_cost", "step_cost", "seconds", "p_equal")


def figure(costs: pd.DataFrame, screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw accuracy compared with plain, accuracy over device seconds, and the screening."""
    from workbench.lab import plots

    looks = {arm: look for arm, look in plots.looks(ARMS).items() if arm in set(confirmed.arm)}
    figure, (differences, cost, rates) = plots.panels(1, 3, (13.5, 4.1), width_ratios=[1.3, 1, 1])
    draw_differences(differences, confirmed, "plain", list(looks))
    differences.set(title="accuracy compared with plain")
    offset = 0.02 * confirmed.device_seconds.max()  # an average and its source took the same seconds
    for i, (arm, look) in enumerate(looks.items()):
        rows = confirmed[confirmed.arm == arm]
        mean, x = accuracy_interval(rows.test_acc), rows.device_seconds.mean() + offset * (i % 2)
        plots.intervals(cost, x, mean.mean, mean.low, mean.high, look, label=arm)
        if rows.failed.any():
            plots.mark_failed(cost, [x], [mean.mean])
    plots.accuracy_axis(cost, "test")
    cost.set(xlim=(0, 1.15 * cost.get_xlim()[1]), title="what it cost", xlabel="device seconds of a training")
    plots.over_rate(rates, screened, "arm", looks)
    rates.set(title="screening")
    plots.legend_outside(figure, columns=6)
    return figure
