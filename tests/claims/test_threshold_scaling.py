"""Claim 3. Evidence: tables with a known answer give that answer and its interval.

The verdict flips with the table.
"""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from support.boundaries import by_product, by_rate, outcomes

from workbench.claims import stability_boundary, threshold_scaling


def facts(table):
    return threshold_scaling.judge(table).table.set_index("fact")


def test_the_exponent_is_one_for_a_boundary_of_the_product_and_zero_for_one_of_the_rate():
    fit = threshold_scaling.collapse(outcomes(by_product))
    assert fit.exponent.mean == pytest.approx(1, abs=0.1) and fit.exponent.low < 1 < fit.exponent.high
    assert fit.product[128] == pytest.approx(0.1, rel=0.25) and fit.unclipped[512] == pytest.approx(1, rel=0.3)
    assert fit.p_rate_alone < 1e-3 and fit.p_no_shift > 0.05 and abs(fit.shift.mean) < 0.3
    fits = fit.fits  # the fits within 95 %, of both batches, span the interval and contain the best fit
    assert (fits.exponent.min(), fits.exponent.max()) == (fit.exponent.low, fit.exponent.high)
    for batch, batch_fits in fits.groupby("batch_size"):
        assert batch_fits["product"].min() <= fit.product[batch] <= batch_fits["product"].max()
    rate = threshold_scaling.collapse(outcomes(by_rate))
    assert rate.p_rate_alone > 0.05


def test_a_shift_of_the_boundary_with_the_batch_is_detected():
    fit = threshold_scaling.collapse(outcomes(lambda b, c: by_product(b, c) * (4 if b == 512 else 1)))
    assert fit.shift.mean == pytest.approx(2, abs=0.5)  # rates are a doubling apart
    assert 0.5 < fit.shift.low < 2 < fit.shift.high and fit.p_no_shift < 0.01


def test_the_table_shows_different_exponents_of_the_batches():
    def bound(batch, clip):
        return 1.0 if clip is None else max(1.0, (0.1 / clip) ** (1.5 if batch == 512 else 0.5) * 2)

    different, equal = (facts(outcomes(b, seeds=3)) for b in (bound, by_product))
    small, large = "exponent k, batch 128 alone", "exponent k, batch 512 alone"
    assert different.high[small] < different.low[large]  # no single exponent fits both
    assert equal.value[small] == pytest.approx(1) and equal.high[small] > equal.low[large]


def test_the_table_has_the_range_of_the_exponent_over_seeds():
    bounds = (lambda b, c: 1.0 if c is None else max(1.0, 2 * (0.1 / c) ** 0.5)), by_product
    tables = [outcomes(bound, seeds=1, spread=0.0).assign(seed=seed) for seed, bound in enumerate(bounds)]
    both = pd.concat(tables)
    alone = [
        threshold_scaling.collapse(rows).exponent.mean for _, rows in threshold_scaling.upper_side(both).groupby("seed")
    ]
    assert alone[0] < 0.8 < alone[1]
    row = facts(both).loc["exponent k, lowest and highest of a seed"]
    assert (row.low, row.high, row.n) == (alone[0], alone[1], 2)


def test_the_verdict_on_the_product_flips_with_the_exponent():
    holds = threshold_scaling.judge(outcomes(by_product, seeds=6))
    assert holds.holds is True and holds.effect.p < 0.05
    square_root = threshold_scaling.judge(outcomes(lambda b, c: 1.0 if c is None else max(1.0, (0.1 / c) ** 0.5 * 2)))
    assert square_root.holds is False and square_root.effect.p < 0.05
    assert holds.table.set_index("fact").p["doublings from batch 128 to 512; p of 0"] > 0.05


def test_the_exponent_falls_where_slow_trainings_count_as_failed():
    """Below the boundary of the product, trainings above rate 1 end with a high loss, but better than guessing."""
    table = outcomes(by_product, seeds=3, spread=0.0)
    slow = (table.outcome == "complete") & (table.lr > 1)
    verdict = threshold_scaling.judge(table.assign(val_loss=table.val_loss.mask(slow, 0.82 * np.log(10))))
    rows = verdict.table.set_index("fact")
    assert rows.value["exponent k, slow trainings count: from 0.8 ln C"] < 0.25
    by_line = rows.value[[f"exponent k, failed from {line:g} ln C" for line in (0.85, 0.9, 0.95, 0.97, 0.99)]]
    assert by_line.min() == by_line.max() == pytest.approx(1)
    assert verdict.effect.value.mean == pytest.approx(1)


def test_the_upper_boundary_leaves_out_trainings_that_fail_because_they_are_slow():
    table = outcomes(by_product)
    slow = (table.batch_size == 128) & (table.lr < 0.3)
    table.loc[slow, ["failed", "val_acc"]] = [1, 0.12]
    assert table[slow].failed.all() and not (threshold_scaling.upper_side(table).lr < 0.3).any()


@pytest.mark.parametrize("claim", [stability_boundary, threshold_scaling])
def test_the_figures_show_failures(claim):
    figure = claim.figure(outcomes(by_product, seeds=2))
    legends = [
        *(legend for part in (figure, *figure.subfigs) for legend in part.legends),
        *(ax.get_legend() for ax in figure.axes if ax.get_legend()),
    ]
    words = [text.get_text() for legend in legends for text in legend.get_texts()]
    assert any("fail" in w or "none" in w or "diverged" in w for w in words)
    assert all(ax.get_xlabel() for ax in figure.axes if ax.get_label() != "<colorbar>")


def test_the_best_thresholds_are_listed_as_ranges_of_rates_without_failures():
    accuracy = {
        (0.2, 0.1): 0.5,
        (0.2, 0.01): 0.4,
        (0.4, 0.1): 0.5,
        (0.4, 0.01): 0.45,
        (0.8, 0.1): 0.9,
        (0.8, 0.01): 0.3,
    }
    rows = [
        {"batch_size": 64, "lr": lr, "clip": clip, "val_acc": a, "failed": int(lr * clip > 0.05)}
        for (lr, clip), a in accuracy.items()
    ]
    assert threshold_scaling.best_thresholds(pd.DataFrame(rows)) == {64: "0.1 at 0.2 to 0.4, 0.01 at 0.8"}


def test_a_threshold_can_be_best_at_a_rate_below_its_own_best_rate():
    """Threshold 0.1 has its best rate at 0.8. The fit leaves out lower rates, but at 0.2 it is still the best."""
    accuracy = {(0.2, 0.1): 0.6, (0.2, 0.01): 0.4, (0.8, 0.1): 0.7, (0.8, 0.01): 0.3, (3.2, 0.1): 0.1, (3.2, 0.01): 0.2}
    rows = [
        {"arm": "NF+AGC", "batch_size": 64, "lr": lr, "clip": clip, "seed": seed, "val_acc": a,
         "outcome": "diverged" if lr == 3.2 else "complete", "val_loss": 1.0, "data": "cifar10"}
        for (lr, clip), a in accuracy.items() for seed in (0, 1)
    ]  # fmt: skip
    best = facts(pd.DataFrame(rows)).loc["best threshold at batch 64, tuned"]
    assert best.by_rate == "0.1 at 0.2 to 0.8" and (best.value, best.lr, best.val_acc) == (0.1, 0.8, 0.7)


def test_the_best_threshold_by_both_protocols():
    """Threshold 0.1 is best at rate 0.2, at both batches. At the scaled rate 0.8, threshold 0.01 is best."""
    best = {(128, 0.2): 0.1, (128, 0.8): 0.01, (512, 0.2): 0.1, (512, 0.8): 0.01}
    rows = [
        {"batch_size": batch, "lr": lr, "clip": clip, "seed": seed,
         "val_acc": (0.5 if lr == 0.2 else 0.4) - 0.2 * (clip != best[batch, lr])}
        for (batch, lr), clip, seed in product(best, (0.01, 0.1, np.nan), (0, 1))
    ]  # fmt: skip
    protocol_table = threshold_scaling.by_protocol(pd.DataFrame(rows)).set_index(["batch_size", "protocol"])
    assert protocol_table["clip"].to_dict() == {(128, "tuned"): 0.1, (512, "tuned"): 0.1, (512, "rate scaled"): 0.01}
    assert protocol_table.lr[512, "rate scaled"] == 0.8 and protocol_table.val_acc[512, "tuned"] == 0.5
