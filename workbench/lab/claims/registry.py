"""The paper's claims, the study that tests each, and the rule that judges its tables."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from workbench.errors import WorkbenchError, unknown
from workbench.lab.verdicts import Verdict


@dataclass(frozen=True)
class Claim:
    """`judge` names the function, module:function, that gets the study's tables, in order, and returns a Verdict."""

    number: int
    sentence: str
    study: str
    judge: str
    tables: tuple[str, ...] = ("table",)

    def verdict(self, tables: dict[str, pd.DataFrame]) -> Verdict:
        """The verdict of these tables, computed anew."""
        module, _, function = self.judge.partition(":")
        judge: Callable[..., Verdict] = getattr(importlib.import_module(f"workbench.lab.{module}"), function)
        return judge(*(tables[name] for name in self.tables))


CLAIMS = (
    Claim(
        1,
        "Scaled weight standardisation keeps the variance as theory says; BatchNorm's trunk grows linearly",
        "signal_propagation",
        "verdicts:signal_verdict",
    ),
    Claim(
        2,
        "Without clipping normalizer-free nets fail as batch and rate grow; with AGC they hold",
        "large_batch",
        "verdicts:large_batch_verdict",
    ),
    Claim(
        3,
        "The threshold falls because the rate rises: stability depends on rate x threshold alone",
        "threshold_scaling",
        "claims.threshold_scaling:verdict",
    ),
    Claim(
        4,
        "Never clip the classifier; all stages must be clipped; the first convolution may be left out",
        "layer_study",
        "claims.layer_study:verdict",
        ("screened", "confirmed"),
    ),
    Claim(
        5,
        "At batch 4 to 32 normalizer-free nets keep their accuracy, BatchNorm loses it",
        "small_batch",
        "claims.small_batch:verdict",
        ("screened", "confirmed"),
    ),
    Claim(
        6,
        "Accumulated large batches equal real ones for normalizer-free nets",
        "accumulation",
        "claims.accumulation:verdict",
        ("gradients", "table"),
    ),
    Claim(
        7,
        "Clipping raises the largest stable learning rate",
        "stability_boundary",
        "claims.stability_boundary:verdict",
    ),
    Claim(
        8,
        "The parts of the NFNet recipe pay for their time",
        "ablation",
        "claims.ablation:verdict",
        ("costs", "screened", "confirmed"),
    ),
    Claim(
        9,
        "SAM and the average of the weights add accuracy at equal time",
        "sam_ema",
        "claims.sam_ema:verdict",
        ("costs", "screened", "confirmed"),
    ),
    Claim(
        10,
        "A normalizer-free net is sooner at an accuracy than its BatchNorm twin",
        "latency",
        "claims.latency:verdict",
        ("costs", "confirmed", "curves"),
    ),
    Claim(
        11,
        "Rate and threshold can be taken from narrower networks",
        "transfer",
        "claims.transfer:verdict",
        ("screened", "table"),
    ),
)


def claims(wanted: list[str] | None = None) -> list[Claim]:
    """The claims with these numbers or studies' names; all without. Raises: WorkbenchError for one that is unknown."""
    by_name = {name: claim for claim in CLAIMS for name in (str(claim.number), claim.study)}
    for name in wanted or ():
        if name not in by_name:
            if name.isdigit():
                numbers = ", ".join(str(claim.number) for claim in CLAIMS)
                raise WorkbenchError(f"there is no claim {name}: the claims are {numbers}.")
            raise unknown("claim", name, by_name)
    return [claim for claim in CLAIMS if not wanted or {str(claim.number), claim.study} & set(wanted)]
