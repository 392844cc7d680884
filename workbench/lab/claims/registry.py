"""The paper's claims, the study that tests each, and the rule that judges its tables."""

import importlib
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError, unknown
from workbench.lab.verdicts import Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence, the study that tests it, and the tables that the study leaves. The file of the study's name beside
    this one has two functions of these tables, in order: verdict and figure. Without a number it is a question of our
    own and not of the paper: judged in the same way, but no member of the family that Holm's adjustment is over."""

    number: int | None
    sentence: str
    study: str
    tables: tuple[str, ...] = ("table",)

    def verdict(self, tables: dict[str, pd.DataFrame]) -> Verdict:
        """The verdict of these tables, computed anew."""
        return self._module.verdict(*(tables[name] for name in self.tables))

    def figure(self, tables: dict[str, pd.DataFrame]) -> Figure:
        """The figure of these tables, drawn anew."""
        return self._module.figure(*(tables[name] for name in self.tables))

    @property
    def _module(self):
        return importlib.import_module(f"workbench.lab.claims.{self.study}")


CLAIMS = (
    Claim(
        1,
        "Scaled weight standardisation keeps the variance of the trunk as theory says",
        "signal_propagation",
    ),
    Claim(
        2,
        "Over batches and rates, normalizer-free nets fail more often without clipping than with AGC",
        "large_batch",
    ),
    Claim(
        3,
        "The threshold falls because the rate rises: stability depends on rate x threshold alone",
        "threshold_scaling",
    ),
    Claim(
        4,
        "Never clip the classifier (of the paper's other choices, stages and first convolution, the lab book tells)",
        "layer_study",
        ("screened", "confirmed"),
    ),
    Claim(
        5,
        "As the batch shrinks to 4, a normalizer-free net loses less accuracy than BatchNorm",
        "small_batch",
        ("screened", "confirmed"),
    ),
    Claim(
        6,
        "Accumulated large batches equal real ones for normalizer-free nets",
        "accumulation",
        ("gradients", "table"),
    ),
    Claim(
        7,
        "Clipping raises the largest stable learning rate",
        "stability_boundary",
    ),
    Claim(
        8,
        "The parts of the NFNet recipe pay for their time",
        "ablation",
        ("costs", "screened", "confirmed"),
    ),
    Claim(
        9,
        "SAM and the average of the weights add accuracy at equal time",
        "sam_ema",
        ("costs", "screened", "confirmed"),
    ),
    Claim(
        10,
        "A normalizer-free net is sooner at an accuracy than its BatchNorm twin",
        "latency",
        ("costs", "screened", "confirmed", "curves"),
    ),
    Claim(
        11,
        "Rate and threshold can be taken from narrower networks",
        "transfer",
        ("screened", "table"),
    ),
)
QUESTIONS = (
    Claim(
        None,
        "Clipping holds zero skip gains down, and that costs a short training accuracy",
        "slow_start",
        ("screened", "confirmed"),
    ),
    Claim(
        None,
        "The paper's protocol shows more of NF+AGC over BN than tuning both alike",
        "protocols",
        ("screened", "confirmed"),
    ),
    Claim(
        None,
        "NF+AGC is within 0.3 points of a fast BatchNorm net in at most 1.3 times its seconds",
        "race",
        ("screened", "confirmed", "paces"),
    ),
)


def claims(wanted: list[str] | None = None) -> list[Claim]:
    """The claims with these numbers, and claims and questions with these studies' names; without, all claims.

    Raises: WorkbenchError for one that is unknown.
    """
    by_name = {name: claim for claim in CLAIMS for name in (str(claim.number), claim.study)}
    by_name |= {question.study: question for question in QUESTIONS}
    for name in wanted or ():
        if name not in by_name:
            if name.isdigit():
                numbers = ", ".join(str(claim.number) for claim in CLAIMS)
                raise WorkbenchError(f"there is no claim {name}: the claims are {numbers}.")
            raise unknown("claim", name, by_name)
    chosen = [by_name[name] for name in wanted or ()]
    return [claim for claim in (*CLAIMS, *QUESTIONS) if claim in chosen] if wanted else list(CLAIMS)
