"""Claim 11. Evidence: optima that move by a known rule are predicted, and the verdict flips with the table."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench.claims import transfer

LRS, CLIPS, WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4), (0.01, 0.04), (0.5, 1.0, 2.0)


def screened(best_lr):
    """Accuracy falls by one point per doubling away from `best_lr(width)`. Threshold 0.04 is best."""
    rows = [
        {"width": width, "lr": lr, "clip": clip, "seed": seed, "failed": int(lr > 3),
         "val_acc": 0.6 - 0.01 * abs(np.log2(lr / best_lr(width))) - 0.02 * (clip != 0.04)}
        for width, lr, clip, seed in product(WIDTHS, LRS, CLIPS, range(2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def confirmed(loss, spread=0.001, others=-0.02):
    """Eight seeds at the predicted point and its rivals. The own best is better by `loss`, the others by `others`."""
    rows = []
    for seed in range(8):
        rows.append({"arm": "predicted", "seed": seed, "test_acc": 0.6 + 0.01 * seed})
        for arm, more in (("half the rate", others), ("twice the rate", others), ("own best", loss)):
            noise = spread * (-1) ** seed
            rows.append({"arm": arm, "seed": seed, "test_acc": 0.6 + 0.01 * seed + more + noise})
    return pd.DataFrame(rows).assign(lr=0.8, clip=0.04, failed=0)


def test_constant_and_halving_optima_are_predicted():
    assert transfer.predicted(screened(lambda width: 0.8)) == {"lr": 0.8, "clip": 0.04}
    assert transfer.predicted(screened(lambda width: 0.8 / width))["lr"] == 0.4
    best = transfer.best_points(screened(lambda width: 0.8 / width))
    assert best.lr.tolist() == [1.6, 0.8, 0.4]


def test_the_table_marks_an_optimum_at_an_end_of_the_grid():
    ends = lambda best: list(
        transfer.judge(screened(best), confirmed(-0.02)).table.at_edge[-3:]
    )  # the rows of the widths
    assert ends(lambda width: 0.2 if width > 0.5 else 0.8) == ["threshold", "rate, threshold", "rate, threshold"]
    assert ends(lambda width: 0.8) == ["threshold"] * 3  # with two thresholds, both are ends


def test_the_rivals_are_the_neighbours_and_the_own_best_point():
    still = transfer.points_to_confirm(screened(lambda width: 0.8))
    assert still.arm.tolist() == ["predicted", "half the rate", "twice the rate", "threshold / 4", "threshold x 4"]
    assert still.lr.tolist() == [0.8, 0.4, 1.6, 0.8, 0.8] and still["clip"].tolist() == [0.04, 0.04, 0.04, 0.01, 0.16]
    assert set(still.width) == {2.0}
    moved = transfer.points_to_confirm(screened(lambda width: 3.2 if width == 2 else 0.4))
    assert moved.iloc[-1][["arm", "lr", "clip"]].tolist() == ["own best", 3.2, 0.04]


def test_the_verdict_flips_with_the_loss():
    moving = screened(lambda width: 1.6 if width == 2 else 0.4)  # a jump that the line does not predict
    losses = ((0.001,), (0.03,), (0.005, 0.01))
    small, large, unclear = (transfer.judge(moving, confirmed(*loss)) for loss in losses)
    assert small.holds is True
    assert small.table.set_index("point").rate_over_best["best at width 2"] == 0.25  # 0.4 predicted, 1.6 best
    assert large.holds is False and large.effect.value.mean == pytest.approx(0.03) and "(own best)" in large.effect.name
    assert unclear.holds is None


def test_all_rivals_must_be_shown_not_to_be_better():
    """The own best is not better. Half the rate may be better by more than half a point."""
    still = screened(lambda width: 0.8)
    assert transfer.judge(still, confirmed(0.0)).holds is True
    assert transfer.judge(still, confirmed(0.0, spread=0.01, others=0.004)).holds is None
    rows = transfer.judge(still, confirmed(0.0)).table.set_index("point")
    assert rows.rate_over_best["best at width 2"] == 1 and rows.points["half the rate"] == pytest.approx(-2)
    assert rows.small_p["half the rate"] < 0.05 and len(rows) == 4 + 3


def test_the_p_value_of_a_refutation_is_multiplied_by_the_number_of_rivals():
    """By hand: the p-value of the worst of three rivals, two-sided, times three."""
    verdict = transfer.judge(screened(lambda width: 0.8), confirmed(0.02, spread=0.012))
    loss = np.array([0.02 + 0.012 * (-1) ** seed for seed in range(8)])
    assert verdict.effect.p == pytest.approx(3 * 2 * stats.ttest_1samp(loss, 0.005, alternative="greater").pvalue)


def test_the_figure_has_one_panel_per_threshold_one_for_rivals_and_marks_failures():
    figure = transfer.figure(screened(lambda width: 0.8), confirmed(0.0))
    above, below = figure.subfigs
    assert [ax.get_title() for ax in above.axes] == ["threshold 0.01", "threshold 0.04"]
    legend = [text.get_text() for text in above.legends[0].get_texts()]
    assert "a seed failed" in legend and "width 2, predicted, and its own best" in legend
    rivals = [label.get_text() for label in below.axes[0].get_yticklabels()]
    assert rivals == ["half the rate", "twice the rate", "own best"]
