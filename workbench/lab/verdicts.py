"""Verdicts: sentences computed from tables, so that a re-run cannot leave a stale one.

Each function takes the tidy table of its notebook and returns a Verdict; nothing else goes in.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.lab.stats import (
    Interval,
    accuracy_interval,
    best_four_of_five,
    difference_p,
    paired_interval,
    share_interval,
    share_p,
    side,
    t_interval,
)
from workbench.probes.rules import broken_rules

SIGNAL_TOLERANCE = 0.15  # of the expected variance
GOOD_REGION = 0.02  # validation accuracy below the best that still counts as good


@dataclass(frozen=True)
class Verdict:
    """A sentence with its numbers, whether the claim holds (None: not decided), and the one effect it rests on."""

    sentence: str
    holds: bool | None
    effect_name: str
    effect: Interval
    stamp: str = ""
    p: float | None = None  # of the contrast that decides, where it is a test

    @property
    def effect_text(self) -> str:
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{self.effect_name} = {self.effect:.3g}, n = {self.effect.n}{p}"

    def stamped(self, stamp: str) -> "Verdict":
        return dataclasses.replace(self, stamp=stamp)

    def metrics(self) -> dict[str, float]:
        """The headline numbers, for the run's row: effect, its bounds and n, and holds as 0 or 1."""
        numbers = {
            "effect": self.effect.mean,
            "effect_low": self.effect.low,
            "effect_high": self.effect.high,
            "effect_n": self.effect.n,
        }
        numbers |= {} if self.p is None else {"p": self.p}
        return numbers | ({} if self.holds is None else {"holds": int(self.holds)})

    def __str__(self) -> str:
        answer = {True: "Holds.", False: "Does not hold.", None: "Not decided."}[self.holds]
        return f"{f'**{self.stamp}** ' if self.stamp else ''}**{answer}** {self.sentence}\n\n*{self.effect_text}*"

    def _repr_markdown_(self) -> str:
        return str(self)


def signal_verdict(table: pd.DataFrame) -> Verdict:
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
    holds = True if worst.high <= SIGNAL_TOLERANCE else False if worst.low > SIGNAL_TOLERANCE else None
    relation = {True: "stays within", False: "leaves", None: "is not shown to stay within"}[holds]
    largest = blocks.groupby("arm").mean_sq.max()
    sentence = (
        f"Over {of_subject.block.nunique()} blocks the variance of the {subject} trunk {relation} "
        f"{SIGNAL_TOLERANCE:.0%} of the theory (largest deviation {worst:.1%} over {worst.n} initialisations) and its "
        f"squared channel mean reaches {largest[subject]:.2g}"
    )
    if "NF without scaled WS" in largest:
        sentence += (
            f"; without scaled weight standardisation the squared mean reaches {largest['NF without scaled WS']:.2g}"
        )
    if "BN" in largest and subject != "BN":
        growth = t_interval([_growth_per_block(t) for _, t in blocks[blocks.arm == "BN"].groupby("seed")])
        sentence += f"; the BatchNorm trunk gains {growth:.2f} in variance a block"
    on_images = table[(table.block > 0) & (table.input == "images") & (table.arm == subject)]
    if len(on_images):
        last = on_images.groupby("seed").tail(1)
        sentence += (
            f"; on images, whose neighbouring pixels are alike, it ends at variance {t_interval(last['var']):.2g} "
            f"where {last.expected_var.mean():.2g} is expected"
        )
    p = difference_p(deviations - SIGNAL_TOLERANCE)
    return Verdict(f"{sentence}.", holds, "largest relative deviation of the variance from theory", worst, p=p)


def _rules_verdict(table: pd.DataFrame, subject: str) -> Verdict:
    """Of a network without a theory: in how many initialisations no rule is broken."""
    found = []
    for _, rows in table.groupby("seed"):
        rows = rows.reset_index(drop=True).assign(peak=0.0)
        found.append(broken_rules(rows, rows.residual_var == 0, "float32"))
    share = share_interval(sum(not faults for faults in found), len(found))
    broken = sorted({fault.verdict for faults in found for fault in faults})
    names = ", ".join(broken)
    ends = table[table.block == table.block.max()]
    sentence = (
        f"There is no theory for {subject}; over {table.block.max()} blocks its variance ends at "
        f"{t_interval(ends['var']):.3g}, and in {share.mean:.0%} of {share.n} initialisations no rule of signal "
        f"propagation is broken{f' (broken: {names})' if broken else ''}."
    )
    return Verdict(sentence, all(not faults for faults in found), "share of initialisations without a fault", share)


def _growth_per_block(blocks: pd.DataFrame) -> float:
    """Mean increase of the variance from one block to the next within a stage."""
    steps = blocks.sort_values("block").groupby("stage")["var"].diff().dropna()
    return float(steps.mean()) if len(steps) else math.nan


def search_verdict(trials: pd.DataFrame, confirmed: pd.DataFrame) -> Verdict:
    """Does the best clipped point beat the best unclipped one, each at its own best rate, on fresh seeds?

    `trials`: arm (NF+AGC, NF), state, outcome, clip, lr, val_acc. `confirmed`: arm, seed, val_acc, lr, clip, failed;
    the seeds are paired.
    """
    by_seed = confirmed.pivot_table(index="seed", columns="arm", values="val_acc")
    if "NF+AGC" not in by_seed:
        return Verdict(
            "No point with AGC completed its training, so nothing could be confirmed.",
            None,
            "accuracy",
            Interval(math.nan, math.nan, math.nan, 0),
        )
    agc = confirmed[confirmed.arm == "NF+AGC"].iloc[0]
    good = _good_region(
        trials[(trials.arm == "NF+AGC") & (trials.state == "COMPLETE") & (trials.outcome == "complete")]
    )
    sentence = (
        f"At batch {agc.batch_size} the best threshold found is {agc['clip']:.3g} at peak rate {agc.lr:.3g} "
        f"(validation accuracy {accuracy_interval(by_seed['NF+AGC']):.1%} on {len(by_seed)} fresh seeds); {good}"
    )
    if "NF" not in by_seed:
        return Verdict(f"{sentence}; no unclipped training completed.", None, "accuracy", t_interval(by_seed["NF+AGC"]))
    difference = paired_interval(by_seed["NF+AGC"], by_seed["NF"])
    plain = confirmed[confirmed.arm == "NF"].iloc[0]
    holds = side(difference)
    relation = {True: "above", False: "below", None: "not told apart from"}[holds]
    sentence += f"; that is {relation} no clipping at its own best rate {plain.lr:.3g} ({difference:+.1%})."
    p = difference_p(by_seed["NF+AGC"] - by_seed["NF"])
    return Verdict(sentence, holds, "accuracy with AGC minus without", difference, p=p)


def _good_region(trials: pd.DataFrame) -> str:
    if trials.empty:
        return "no trial completed"
    good = trials[trials.val_acc >= trials.val_acc.max() - GOOD_REGION]
    return (
        f"the trials within {GOOD_REGION:.0%} of the best have thresholds from {good['clip'].min():.3g} to "
        f"{good['clip'].max():.3g} ({len(good)} of {len(trials)} completed)"
    )


def large_batch_verdict(table: pd.DataFrame) -> Verdict:
    """Where exactly one of NF and NF with AGC fails (same batch, rate and seed), is it the one without?

    Columns: arm (BN, NF, NF+AGC), batch_size, lr, seed, val_acc, failed, outcome.
    """
    cell = ["batch_size", "lr", "seed"]
    failed = table.pivot_table(index=cell, columns="arm", values="failed")[["NF", "NF+AGC"]].dropna()
    only_plain = int(((failed["NF"] == 1) & (failed["NF+AGC"] == 0)).sum())
    only_agc = int(((failed["NF"] == 0) & (failed["NF+AGC"] == 1)).sum())
    share = share_interval(only_plain, only_plain + only_agc)
    holds = None if share.n == 0 else True if share.low > 0.5 else False if share.high < 0.5 else None
    counts = ", ".join(f"{arm} {int(t.failed.sum())} of {len(t)}" for arm, t in table.groupby("arm"))
    best = "; ".join(_best_of_batch(batch, rows) for batch, rows in table.groupby("batch_size"))
    sentence = (
        f"Failed trainings: {counts}. In {only_plain} of the {share.n} cells where exactly one of the two fails, it is "
        f"NF without clipping. Best peak rate by mean validation accuracy: {best}."
    )
    if scaled := _linearly_scaled(table):
        sentence += f" By the paper's protocol, rates scaled with the batch and the worst seed left out: {scaled}."
    p = share_p(only_plain, share.n)
    return Verdict(sentence, holds, "share of discordant cells in which only the unclipped net fails", share, p=p)


def _linearly_scaled(table: pd.DataFrame) -> str:
    """By the paper's protocol: each arm's best rate at the smallest batch, scaled linearly, and the mean accuracy
    without the worst seed; where the scaled rates are on the grid."""
    smallest, largest = table.batch_size.min(), table.batch_size.max()
    parts = []
    for arm, rows in table.groupby("arm"):
        best = rows[rows.batch_size == smallest].groupby("lr").val_acc.mean().idxmax()
        scaled = rows[(rows.batch_size == largest) & np.isclose(rows.lr, best * largest / smallest)]
        if len(scaled) > 1 and smallest < largest:
            failed = f", {int(scaled.failed.sum())} failed" if scaled.failed.any() else ""
            parts.append(f"{arm} {best_four_of_five(scaled.val_acc):.1%} at {scaled.lr.iloc[0]:.3g}{failed}")
    return f"batch {largest}: {', '.join(parts)}" if parts else ""


def _best_of_batch(batch: int, rows: pd.DataFrame) -> str:
    parts = []
    for arm, t in rows.groupby("arm"):
        means = t.groupby("lr").val_acc.mean()
        lr = means.idxmax()
        parts.append(f"{arm} {accuracy_interval(t[t.lr == lr].val_acc):.1%} at {lr:.3g}")
    return f"batch {batch}: {', '.join(parts)}"
