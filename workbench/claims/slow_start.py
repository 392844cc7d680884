"""What do zero skip gains cost a short run, and is it clipping that holds them down?

Not one of the paper's claims, but a trap in testing them: a skip gain starts at 0, and AGC takes the norm of its
weights as at least eps = 1e-3, so that at threshold 0.01 its gradient is at most 1e-5 (NFNet paper, sections 2 and
4.1; the authors clip gains and biases like weights). Tables: `screened`, one row a training, with arm, lr, seed,
failed, val_acc; `confirmed`, each arm at its own best rate on fresh seeds, with arm, seed, test_acc, failed. The
contrast, written down before the confirmation: test accuracy with the skip gains not clipped minus that of the
paper's choice, paired by seed.
"""

import pandas as pd
from matplotlib.figure import Figure

from workbench.claims.claim import Claim
from workbench.lab.statistics.effects import beside, details, effect_of
from workbench.lab.statistics.intervals import points_with_ci, side
from workbench.lab.statistics.panels import effects_and_rates
from workbench.lab.statistics.rates import with_edges
from workbench.lab.statistics.verdict import Verdict

CLAIM = Claim(
    "Clipping holds zero skip gains down, and that costs a short training accuracy", tables=("screened", "confirmed")
)

PAPER = "paper's: from 0, clipped"
GAINS = "skip gains not clipped"
VECTORS = "gains and biases not clipped"
EPS = "eps {:g}"
ONE = "skip gains from 1"
NONE = "no clipping"


def arms(clip: float, eps: list[float]) -> dict[str, dict]:
    """What differs in each arm, as fields of a TrainConfig; `eps` are floors of the norm of a unit's weights."""
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
    """Does a short run gain accuracy where its skip gains, which start at 0, are not clipped?"""
    effect = effect_of("accuracy with skip gains not clipped minus with", confirmed, PAPER, GAINS)
    holds = side(effect.value)
    relation = {True: "raises", False: "lowers", None: "is not shown to change"}[holds]
    headline = f"Not clipping skip gains that start at zero {relation} accuracy: {points_with_ci(effect.value)}."
    return Verdict(
        holds, effect, headline, with_edges(details(beside(confirmed, PAPER, contrast=GAINS), "lr"), screened)
    )


def figure(screened: pd.DataFrame, confirmed: pd.DataFrame) -> Figure:
    """Left: accuracy beside the paper's choice, each arm at its own best rate. Right: which rates each arm stands."""
    return effects_and_rates(screened, confirmed, PAPER)
