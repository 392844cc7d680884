"""Paired effects and second readings. Evidence: differences by hand, scipy's tests, and counted rows."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from workbench.lab.jobs.second_readings import at_best, to_train, with_second
from workbench.lab.statistics.effects import effects, interval_of
from workbench.lab.statistics.panels import draw_differences


def confirmed(**values):
    rows = [
        {"arm": arm, "seed": seed, "test_acc": value, "failed": 0}
        for arm, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def test_a_paired_difference_does_not_depend_on_the_spread_of_seeds():
    table = effects(confirmed(a=[0.1, 0.5, 0.9], b=[0.12, 0.53, 0.91]), "a")
    assert list(table.arm) == ["b"] and table.n[0] == 3
    half = 4.3027 * 0.01 / 3**0.5  # Student's t with two degrees of freedom, deviation 0.01
    difference = interval_of(table, "b")
    assert difference.mean == pytest.approx(0.02) and difference.high == pytest.approx(0.02 + half, abs=1e-5)
    assert table.accuracy[0] == pytest.approx(0.52)


def test_p_values_are_those_of_the_paired_tests_and_holm_multiplies_the_smallest():
    a, b, c = np.random.default_rng(0).normal([[0.5], [0.52], [0.5]], 0.01, (3, 8))
    table = effects(confirmed(a=a, b=b, c=c), "a").set_index("arm")
    assert table.p["b"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert table.p_holm["b"] == pytest.approx(2 * table.p["b"]) and table.p_holm["c"] == pytest.approx(table.p["c"])
    higher = stats.ttest_1samp(c - a, -0.005, alternative="greater").pvalue
    lower = stats.ttest_1samp(c - a, 0.005, alternative="less").pvalue
    assert table.p_equal["c"] == pytest.approx(max(higher, lower))


def test_only_seeds_in_both_arms_count():
    table = effects(confirmed(a=[0.1, 0.2, 0.9], b=[0.2, 0.4]), "a")
    assert table.n[0] == 2 and table.difference[0] == pytest.approx(0.15)


def test_a_failed_seed_is_crossed_and_stays_in_the_mean():
    import matplotlib.pyplot as plt

    table = confirmed(a=[0.5, 0.5], b=[0.6, 0.1])
    table.loc[(table.arm == "b") & (table.seed == 1), "failed"] = 1
    _, ax = plt.subplots()
    draw_differences(ax, table, "a", ["a", "b"])
    crosses = [line.get_xdata() for line in ax.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert len(crosses) == 1 and crosses[0] == pytest.approx([-40])
    plt.close()


SECOND = {"plain": "EMA"}


def trainings():
    return pd.DataFrame(
        [
            {"arm": "plain", "lr": 1.0, "seed": 0, "val_acc": 0.5, "ema_val_acc": 0.6},
            {"arm": "plain", "lr": 2.0, "seed": 0, "val_acc": 0.1, "ema_val_acc": None},  # diverged
            {"arm": "SAM", "lr": 1.0, "seed": 0, "val_acc": 0.4, "ema_val_acc": 0.7},
        ]
    )


def test_a_second_reading_adds_rows_with_its_metrics_and_guesses_after_divergence():
    read = with_second(trainings(), SECOND, "ema_")
    assert len(read) == 5 and list(read[read.arm == "EMA"].val_acc) == [0.6, 0.1]
    assert list(read[read.arm == "plain"].val_acc) == [0.5, 0.1] and "test_acc" not in read


def test_arms_that_share_a_rate_train_once_and_each_is_read_at_its_best_rate():
    same = pd.DataFrame({"arm": ["plain", "EMA"], "lr": [1.0, 1.0]})
    assert to_train(same, SECOND)[["arm", "lr"]].values.tolist() == [["plain", 1.0]]
    other = pd.DataFrame({"arm": ["plain", "EMA"], "lr": [1.0, 2.0]})
    assert to_train(other, SECOND).lr.tolist() == [1.0, 2.0]
    kept = at_best(with_second(trainings(), SECOND, "ema_"), other)
    assert kept[["arm", "lr"]].values.tolist() == [["plain", 1.0], ["EMA", 2.0]]
