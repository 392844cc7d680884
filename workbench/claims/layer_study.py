"""Claim 4: never clip the final linear layer; all stages must be clipped; the first convolution may be left out.

Source: NFNet paper, section 4.1 (NF-ResNets at batch 4096, threshold 0.01, rate 1.6). Tables: `screened`,
one row a training, with arm, lr, seed, failed, val_acc; `confirmed`, each arm at its own best rate on fresh seeds, with
arm, seed, test_acc, failed. The contrast, written down before the confirmation: test accuracy with the head clipped,
too, minus that of the paper's choice, paired by seed. The rest is one family under Holm; the first convolution is also
tested for equality within 0.5 points.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.errors import unknown
from workbench.lab.statistics.effects import beside, details, effect_of
from workbench.lab.statistics.intervals import points_with_ci, side
from workbench.lab.statistics.panels import effects_and_rates
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "Never clip the classifier (of the paper's other choices, stages and first convolution, the lab book tells)",
    number=4,
    tables=("screened", "confirmed"),
)

PAPER = "all but the head"
HEAD = "head, too"
FIRST = "without first conv"
STAGE = "without stage {}"
VECTORS = "without vectors"
NONE = "no clipping"


def arms(clip: float, stages: list[int], only: Sequence[str] = ()) -> dict[str, dict]:
    """What is clipped in each arm, as fields of a TrainConfig; stages count from 1. `only` these beside the two of the
    contrast; none: all.

    Raises: WorkbenchError for a name in `only` that is no arm.
    """
    left_out = {FIRST: "first_conv", **{STAGE.format(n): f"stage{n}" for n in stages}, VECTORS: "vectors"}
    all_arms = {
        PAPER: {"clip": clip},
        HEAD: {"clip": clip, "clip_head": True},
        **{arm: {"clip": clip, "clip_exempt": [part]} for arm, part in left_out.items()},
        NONE: {"clip": None},
    }
    for arm in only:
        if arm not in all_arms:
            raise unknown("arm", arm, all_arms)
    return {arm: fields for arm, fields in all_arms.items() if not only or arm in (PAPER, HEAD, *only)}


def summary(screened: pd.DataFrame, confirmed: pd.DataFrame) -> pd.DataFrame:
    """One row an arm: lr (its best rate), accuracy, difference to the paper's arm with low, high, p, p_holm and
    p_equal, failed and n of the confirmation, largest_stable rate, whether it is the last that was tried (`open`, for
    it may stand more), and margin, in doublings above the paper's."""
    stable = largest_stable(screened)
    rates = pd.DataFrame({"largest_stable": stable, "open": stable == screened.lr.max(),
                          "margin": np.log2(stable / stable.get(PAPER, math.nan))})  # fmt: skip
    return beside(confirmed, PAPER, contrast=HEAD).merge(rates, left_on="arm", right_index=True, how="left")


def largest_stable(screened: pd.DataFrame) -> pd.Series:
    """By arm the largest rate at which no training failed; NaN where one failed at each."""
    clean = screened.groupby(["arm", "lr"], sort=False).failed.max().reset_index()
    largest = clean[clean.failed == 0].groupby("arm").lr.max()
    return largest.reindex(list(dict.fromkeys(screened.arm)))


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Does clipping the head cost accuracy? And what of the other layers?"""
    effect = effect_of("accuracy with the head clipped minus without", confirmed, PAPER, HEAD)
    better = side(effect.value)
    holds = None if better is None else not better
    relation = {True: "costs", False: "gains", None: "is not shown to change"}[holds]
    headline = f"Clipping the classifier, too, {relation} accuracy: {points_with_ci(effect.value)}."
    rows = summary(screened, confirmed)
    table = details(rows, "lr", "p_equal", "largest_stable", "open", "margin").rename(
        columns={"open": "last_tried", "margin": "doublings"}
    )
    return Verdict(holds, effect, headline, with_edges(table, screened))


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Left: accuracy beside the paper's choice, each arm at its own best rate. Right: which rates each arm stands."""
    return effects_and_rates(screened, confirmed, PAPER)
