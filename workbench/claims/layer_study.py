"""Claim 4: never clip the final linear layer.

The paper also says that all stages must be clipped, and that the first convolution may be left out.

Source: NFNet paper, section 4.1 (NF-ResNets at batch 4096, threshold 0.01, rate 1.6).

Contrast, written down before the confirmation: test accuracy with the head clipped, too, minus that of the paper's
choice, paired by seed. The other arms form one family under Holm's adjustment. The first convolution is also tested for
equality within 0.5 points.

Tables:
    screened: One row per training. Columns arm, lr, seed, failed, val_acc.
    confirmed: Each arm at its own best rate, on fresh seeds. Columns arm, seed, test_acc, failed.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.errors import unknown
from workbench.lab.statistics.effects import compare_arms, details, effect_of
from workbench.lab.statistics.intervals import points_with_ci, side
from workbench.lab.statistics.panels import effects_and_rates
from workbench.lab.statistics.preconditions import LED, rate_separated
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "Never clip the classifier (stages and first convolution: see the lab book)",
    precondition=LED,
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
    """Return what each arm clips, as fields of a TrainConfig.

    Args:
        clip: AGC's threshold.
        stages: Numbers of the stages, from 1.
        only: Arms to keep, in addition to the two of the contrast. Empty: all arms.

    Raises:
        WorkbenchError: If `only` names an unknown arm.
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
    """Compare each arm with the paper's choice.

    Returns:
        One row per arm:

        - lr: its best rate
        - accuracy, and the difference to the paper's arm with low, high, p, p_holm and p_equal
        - failed and n of the confirmation
        - largest_stable: the largest rate at which no training failed
        - open: whether that is the largest rate of the grid, so that the arm may tolerate more
        - margin: doublings of that rate over the paper's arm
    """
    stable = largest_stable(screened)
    rates = pd.DataFrame({"largest_stable": stable, "open": stable == screened.lr.max(),
                          "margin": np.log2(stable / stable.get(PAPER, math.nan))})  # fmt: skip
    return compare_arms(confirmed, PAPER, contrast=HEAD).merge(rates, left_on="arm", right_index=True, how="left")


def largest_stable(screened: pd.DataFrame) -> pd.Series:
    """Return by arm the largest rate at which no training failed.

    NaN if a training failed at every rate.
    """
    clean = screened.groupby(["arm", "lr"], sort=False).failed.max().reset_index()
    largest = clean[clean.failed == 0].groupby("arm").lr.max()
    return largest.reindex(list(dict.fromkeys(screened.arm)))


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether clipping the head costs accuracy. The table has the other layers."""
    if (undecided := nothing_to_compare(confirmed, PAPER, HEAD, tried=screened)) is not None:
        return undecided
    effect = effect_of("accuracy with the head clipped minus without", confirmed, PAPER, HEAD)
    better = side(effect.value)
    holds = None if better is None else not better
    relation = {True: "costs", False: "gains", None: "is not shown to change"}[holds]
    headline = f"Clipping the classifier, too, {relation} accuracy: {points_with_ci(effect.value)}."
    rows = summary(screened, confirmed)
    table = details(rows, "lr", "p_equal", "largest_stable", "open", "margin").rename(
        columns={"open": "last_tried", "margin": "doublings"}
    )
    return Verdict(holds, effect, headline, with_edges(table, screened)).on(
        rate_separated(CLAIM.precondition, screened, PAPER, HEAD)
    )


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw accuracy compared with the paper's choice, and the rates that each arm tolerates.

    Each arm trains at its own best rate.
    """
    return effects_and_rates(screened, confirmed, PAPER)
