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

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import compare_arms, details, effect_of
from workbench.lab.statistics.intervals import points_with_ci, side
from workbench.lab.statistics.panels import draw_differences, draw_screening
from workbench.lab.statistics.preconditions import GAP, overfits
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
    """Draw accuracy compared with plain, the seconds of every training, and the screening. One line per arm."""
    from workbench.lab import plots

    arms = [arm for arm in ARMS if arm in {*confirmed.arm, *screened.arm}]
    size = (13.5, 1.9 + 0.45 * len(arms))
    figure, (differences, seconds, screening) = plots.panels(1, 3, size, sharey=True, width_ratios=[1.3, 1, 1.2])
    draw_differences(differences, confirmed, "plain", arms)
    differences.set(title="accuracy, each at its best rate")
    for y, arm in enumerate(arms):
        rows = confirmed[confirmed.arm == arm]
        at = y + np.linspace(-0.22, 0.22, len(rows))
        seconds.plot(rows.device_seconds, at, "o", ms=3, color="0.65", label="a seed")
    seconds.set(title="what it cost", xlabel="device seconds of a training")
    seconds.set_xlim(left=0)
    draw_screening(screening, screened, confirmed, arms)
    plots.legend_outside(figure, columns=6)
    return figure
