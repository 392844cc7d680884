"""All confirmations. Evidence: Cochran's Q by hand, and the committed table, computed again from its tables."""

import math

import pandas as pd
import pytest
from scipy import stats

from workbench.claims import over_networks
from workbench.claims.confirmations import EARLIER, FILE, agreement, confirmations, with_agreement
from workbench.claims.evidence_figures import accuracies, forest
from workbench.claims.judging import judged, results_folder
from workbench.claims.registry import all_claims
from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Effect, Precondition, Verdict


def rows(*effects, error=1.0, n=9):
    half = error * stats.t.ppf(0.975, n - 1)
    return pd.DataFrame(
        {"study": "a", "claim": 1, "effect": effect, "low": effect - half, "high": effect + half, "n": n, "date": "d",
         "run": "r", "differed": "", "unit": "points", "current": "yes" if i == 0 else "no"}
        for i, effect in enumerate(effects)
    )  # fmt: skip


def test_q_is_the_sum_of_squared_distances_from_the_common_mean_over_squared_errors():
    agreed = agreement(rows(0.0, 2.0, 4.0))
    assert (agreed.n, agreed.freedom) == (3, 2) and agreed.q == pytest.approx(8)  # 4 + 0 + 4
    assert agreed.p == pytest.approx(math.exp(-4)) and agreed.i2 == pytest.approx(1 - 2 / 8)
    assert agreed.disagree and not agreement(rows(0.0, 2.0, 4.0, error=2.0)).disagree


def test_confirmations_without_an_interval_do_not_count_in_q():
    alone = agreement(pd.concat([rows(0.0), rows(9.0, n=2), rows(9.0, error=0.0)]))
    assert alone.n == 3 and math.isnan(alone.p) and not alone.disagree


@pytest.fixture(scope="module")
def committed():
    return judged(list(all_claims()), where="docs")


def test_the_committed_table_has_every_confirmation_and_is_computed_from_the_committed_tables(committed):
    table = pd.read_csv(results_folder() / FILE, dtype={"claim": "Int64", "run": str})
    again = with_agreement(confirmations(committed, results_folder()))
    pd.testing.assert_frame_equal(table, again, check_dtype=False, rtol=1e-4)
    assert {(each.study, each.run) for each in EARLIER} <= set(zip(again.study, again.run, strict=True))
    current = again[again.current == "yes"]
    assert sorted(current.study) == sorted(each.claim.study for each in committed if each.evidence)


def test_a_claim_whose_confirmations_disagree_says_so(committed):
    """Claim 4: -2.6, -1.6 and -0.5 points differ by more than their intervals allow."""
    layers = next(each for each in committed if each.claim.study == "layer_study")
    assert layers.agreement.q == pytest.approx(30, abs=0.1) and layers.agreement.disagree
    assert layers.verdict.table.q.iloc[-1] == layers.agreement.q


def test_the_figures_show_every_confirmation_and_every_training(committed):
    table = confirmations(committed, results_folder())
    drawn = sum(len(container[0].get_xdata()) for ax in forest(table).axes for container in ax.containers)
    assert drawn == len(table)
    (ax,) = accuracies(committed).axes
    assert ax.get_xlim() == (0, 100) and len(ax.get_yticklabels()) == sum(
        any("val_acc" in t for t in each.evidence.tables.values()) for each in committed if each.evidence
    )


def test_over_networks_each_network_is_one_observation():
    def trained(ahead):
        return pd.DataFrame(
            {"arm": arm, "seed": seed, "test_acc": 0.5 + more + seed / 100}
            for arm, more in (("BN", 0.0), ("NF+AGC", ahead)) for seed in range(4)
        )  # fmt: skip

    def alone(met):
        effect = Effect("its effect", Interval(1.0, 0.0, 2.0, 4))
        return Verdict(True, effect, "", pd.DataFrame()).on(Precondition("BN", "90 %", met))

    tables = {"a": trained(-0.03), "b": trained(0.02)}
    verdict = over_networks.over_networks("BN", tables, {"a": alone(True), "b": alone(True)})
    assert verdict.holds is None and verdict.effect.value.n == 2
    assert verdict.effect.value.mean == pytest.approx(-0.005)
    assert verdict.table.points.tolist() == pytest.approx([-3, 2])
    assert not over_networks.over_networks("BN", tables, {"a": alone(True), "b": alone(False)}).testable
