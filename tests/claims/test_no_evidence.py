"""Every claim with tables that show nothing: all trainings diverged, an arm is missing, or there is one seed.

The tables are the committed ones, changed. A study with such tables has a verdict without an answer, and a figure.
"""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from support.tables import confirmed, trials

from workbench.claims.judging import results_folder
from workbench.claims.registry import all_claims
from workbench.lab.statistics.verdict import Verdict

CAUSE = "the loss is not finite at step 3"
MEASURED_AT_THE_END = ("train_loss", "val_loss", "clipped_share", "ratio_p99", "ema_val_acc", "precise_val_acc")
CLAIMS = {claim.study: claim for claim in all_claims()}
NO_TRAININGS = {"signal_propagation"}  # it measures networks before their first step
SLOW = {"threshold_scaling"}  # its fit takes seconds
DECIDED_BY_TRAININGS = {"threshold_scaling"}  # its unit is the training, so one seed may decide


def tables_of(claim):
    if claim.study == "clipping_search":
        return {"trials": trials(), "confirmed": confirmed(0.1)}
    if claim.study == "own_network":
        tried, fresh = (t.assign(arm=t.arm.replace("NF", "BN"), failed=0) for t in (trials(), confirmed(0.1)))
        return {"trials": tried, "confirmed": fresh.assign(test_acc=fresh.val_acc, weights=None)}
    names = {name: "" if name == "table" else f"_{name}" for name in claim.tables}
    return {name: pd.read_csv(results_folder() / f"{claim.study}{end}.csv") for name, end in names.items()}


def diverged(tables):
    """Every training diverges: no losses, no curves, no pace, and nothing for a search to confirm."""
    changed = {}
    for name, table in tables.items():
        if "outcome" in table:
            table = table.drop(columns=[n for n in MEASURED_AT_THE_END if n in table])
            guess = {n: 0.1 for n in ("val_acc", "test_acc") if n in table}
            table = table.assign(outcome="diverged", failed=1, failed_at_step=3, cause=CAUSE, **guess)
            if "trials" in tables and name == "confirmed":
                table = table.iloc[:0]
        elif name == "curves":
            table = table.iloc[:0]
        elif name == "paces":
            table = table.assign(seconds=np.nan, images_per_second=np.nan, peak_share=np.nan)
        elif "var" in table:
            table = table.assign(**dict.fromkeys(("var", "mean_sq", "residual_var", "grad_var"), np.nan))
        changed[name] = table
    return changed


def without(tables, arm):
    return {name: table[table.arm != arm].reset_index(drop=True) for name, table in tables.items()}


def alone(tables, arm):
    """Keep one arm. A table of other arms, such as a screening of all widths, stays."""
    kept = {name: table[table.arm == arm].reset_index(drop=True) for name, table in tables.items()}
    return {name: tables[name] if table.empty else table for name, table in kept.items()}


def one_seed(tables):
    return {name: t[t.seed == t.seed.min()] if "seed" in t else t for name, t in tables.items()}


def arms(tables):
    compared = tables["confirmed"] if "confirmed" in tables else tables["table"]
    return sorted(set(compared.arm))


def drawn(claim, tables) -> int:
    """Draw as a study does, and return the number of panels."""
    figure = claim.figure(tables)
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    plt.close(figure)
    return len(figure.axes)


def answered(claim, tables) -> Verdict:
    """Judge as a study does, and return the verdict."""
    verdict = claim.judge(tables)
    assert isinstance(verdict, Verdict) and len(verdict.table.columns)
    assert all(isinstance(value, int | float) for value in verdict.metrics().values())
    assert "nan" not in str(verdict) and "None" not in str(verdict)
    return verdict


def cases(claim):
    """Tables that show little or nothing, by what is missing."""
    tables = tables_of(claim)
    lost = diverged(tables)
    yield "all diverged", lost
    yield "one seed", one_seed(tables)
    for arm in arms(tables):
        yield f"no {arm}", without(tables, arm)
        yield f"only {arm}, diverged, one seed", alone(one_seed(lost), arm)
        mixed = {
            name: pd.concat([table[table.arm != arm], lost[name][lost[name].arm == arm]], ignore_index=True)
            for name, table in tables.items()
        }
        yield f"{arm} diverged", mixed


@pytest.mark.parametrize("study", CLAIMS)
def test_a_study_in_which_all_diverged_is_undecided_and_lists_the_causes(study):
    claim = CLAIMS[study]
    verdict = answered(claim, diverged(tables_of(claim)))
    assert verdict.holds is None
    if study not in NO_TRAININGS:
        assert set(verdict.table.outcome) == {"diverged"} and set(verdict.table.cause) == {CAUSE}
        assert "diverged" in verdict.headline


@pytest.mark.parametrize("study", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in CLAIMS])
def test_every_study_has_a_verdict_without_an_arm_a_seed_or_a_completed_training(study):
    claim = CLAIMS[study]
    for missing, tables in cases(claim):
        verdict = answered(claim, tables)
        if "one seed" in missing and study not in DECIDED_BY_TRAININGS:
            assert verdict.holds is None, missing


@pytest.mark.slow
@pytest.mark.parametrize("study", CLAIMS)
def test_every_study_has_a_figure_without_an_arm_a_seed_or_a_completed_training(study):
    claim = CLAIMS[study]
    for missing, tables in cases(claim):
        assert drawn(claim, tables) > 0, missing
