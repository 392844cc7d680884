"""Question: what do zero skip gains cost a short run, and is clipping the reason?

This is no claim of the paper, but a trap in tests of its claims. A skip gain starts at 0. AGC takes the norm of its
weights as at least eps = 1e-3, so at threshold 0.01 its gradient is at most 1e-5. See the NFNet paper, sections 2 and
4.1. Its authors clip gains and biases like weights.

Contrast, written down before the confirmation: test accuracy with the skip gains not clipped minus that of the paper's
choice, paired by seed.

Tables:
    screened: One row per training. Columns arm, lr, seed, failed, val_acc.
    confirmed: Each arm at its own best rate, on fresh seeds. Columns arm, seed, test_acc, failed.
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import compare_arms, details, effect_of
from workbench.lab.statistics.intervals import points_with_ci, side
from workbench.lab.statistics.panels import effects_and_rates
from workbench.lab.statistics.preconditions import TRAINS, none_fails
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.undecided import nothing_to_compare
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "Clipping keeps zero skip gains small, and a short training loses accuracy",
    precondition=TRAINS,
    tables=("screened", "confirmed"),
)

PAPER = "paper's: from 0, clipped"
GAINS = "skip gains not clipped"
VECTORS = "gains and biases not clipped"
EPS = "eps {:g}"
ONE = "skip gains from 1"
NONE = "no clipping"


def arms(clip: float, eps: list[float]) -> dict[str, dict]:
    """Return what differs in each arm, as fields of a TrainConfig.

    Args:
        clip: AGC's threshold.
        eps: Lower bounds of a unit's weight norm, one arm each.
    """
    zero = {"model_args": {"skip_gain": 0.0}}
    return {
        PAPER: {**zero, "clip": clip},
        GAINS: {**zero, "clip": clip, "clip_exempt": ["*skip_gain"]},
        VECTORS: {**zero, "clip": clip, "clip_exempt": ["vectors"]},
        **{EPS.format(value): {**zero, "clip": clip, "clip_eps": value} for value in eps},
        ONE: {"model_args": {"skip_gain": 1.0}, "clip": clip},
        NONE: {**zero, "clip": None},
    }


def judge(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Judge whether a short run gains accuracy if its zero skip gains are not clipped."""
    if (undecided := nothing_to_compare(confirmed, PAPER, GAINS, tried=screened)) is not None:
        return undecided
    effect = effect_of("accuracy with skip gains not clipped minus with", confirmed, PAPER, GAINS)
    holds = side(effect.value)
    relation = {True: "raises", False: "lowers", None: "is not shown to change"}[holds]
    headline = f"Not clipping skip gains that start at zero {relation} accuracy: {points_with_ci(effect.value)}."
    table = with_edges(details(compare_arms(confirmed, PAPER, contrast=GAINS), "lr"), screened)
    return Verdict(holds, effect, headline, table).on(none_fails(CLAIM.precondition, confirmed, PAPER, GAINS))


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Draw accuracy compared with the paper's choice, and the rates that each arm tolerates.

    Each arm trains at its own best rate.
    """
    return effects_and_rates(screened, confirmed, PAPER)
