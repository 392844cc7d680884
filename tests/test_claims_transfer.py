"""Claim 11. Evidence: optima that move by a known rule are predicted; the verdict flips with the table."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from workbench.lab.claims import transfer

LRS, CLIPS, WIDTHS = (0.2, 0.4, 0.8, 1.6, 3.2, 6.4), (0.01, 0.04), (0.5, 1.0, 2.0)


def screened(best_lr):
    """Accuracy falls by a point for every doubling away from `best_lr(width)`; threshold 0.04 is best."""
    rows = [
        {"width": width, "lr": lr, "clip": clip, "seed": seed, "failed": int(lr > 3),
         "val_acc": 0.6 - 0.01 * abs(np.log2(lr / best_lr(width))) - 0.02 * (clip != 0.04)}
        for width, lr, clip, seed in product(WIDTHS, LRS, CLIPS, range(2))
    ]  # fmt: skip
    return pd.DataFrame(rows)


def confirmed(loss, spread=0.001):
    rows = []
    for seed in range(8):
        rows.append({"arm": "own", "seed": seed, "test_acc": 0.6 + 0.01 * seed})
        rows.append({"arm": "predicted", "seed": seed, "test_acc": 0.6 + 0.01 * seed - loss + spread * (-1) ** seed})
    return pd.DataFrame(rows)


def test_an_optimum_that_does_not_move_and_one_that_halves_are_predicted():
    assert transfer.predicted(screened(lambda width: 0.8)) == {"lr": 0.8, "clip": 0.04}
    assert transfer.predicted(screened(lambda width: 0.8 / width))["lr"] == 0.4
    best = transfer.best_points(screened(lambda width: 0.8 / width))
    assert best.lr.tolist() == [1.6, 0.8, 0.4]


def test_the_verdict_flips_with_the_loss():
    moving = screened(lambda width: 1.6 if width == 2 else 0.4)  # a jump that no line through the others foresees
    small, large, unclear = (transfer.verdict(moving, confirmed(*how)) for how in ((0.001,), (0.03,), (0.005, 0.01)))
    assert (
        small.holds is True
        and "loses less than 0.5%" in small.sentence
        and "not within a factor of 2" in small.sentence
    )
    assert large.holds is False and large.effect.mean == pytest.approx(0.03)
    assert unclear.holds is None and "is not shown to lose less" in unclear.sentence


def test_the_same_point_cannot_lose():
    verdict = transfer.verdict(screened(lambda width: 0.8), confirmed(0.0))
    assert verdict.holds is True and "within a factor of 2 of its own rate" in verdict.sentence


def test_the_figure_has_a_panel_a_threshold_and_marks_failures():
    figure = transfer.figure(screened(lambda width: 0.8), confirmed(0.0))
    assert [ax.get_title() for ax in figure.axes] == ["threshold 0.01", "threshold 0.04"]
    assert "a seed failed" in [text.get_text() for text in figure.legends[0].get_texts()]
