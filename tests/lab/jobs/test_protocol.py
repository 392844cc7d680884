"""The protocol. Evidence: accuracies that peak at a known rate, and the rates that were trained to find it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.lab.jobs import protocol
from workbench.lab.statistics import rates


@pytest.fixture
def peak(monkeypatch):
    """Replace `run_all` by trainings whose accuracy falls with the distance of the rate to 2 ** peak[arm].

    The batch size moves the peak.
    """
    at = {}

    def run_all(arms, session, role):
        rows = [
            {"arm": a.name, "lr": a.config.lr, "seed": a.config.seed, "outcome": "complete",
             "clip": getattr(a.config, "clip", None), "val_acc": 0.9 - getattr(a.config, "loss", 0.0)
             - 0.1 * abs(np.log2(a.config.lr / a.config.batch) - at[a.name])}
            for a in arms
        ]  # fmt: skip
        return pd.DataFrame(rows)

    monkeypatch.setattr(protocol, "run_all", run_all)
    monkeypatch.setattr(protocol, "Arm", lambda name, config: SimpleNamespace(name=name, config=config))
    return at


def training(arm, lr, seed, batch=1):
    # the rate is scaled by the batch, so it is not the grid's
    return SimpleNamespace(lr=lr * batch, seed=seed, batch=batch, replace=lambda **_: training(arm, lr, seed, batch))


def screened(peak, lrs, extend, cells=({},), **at):
    peak.update(at)
    return protocol.screen(list(at), lrs, [0, 1], training, None, cells, extend=extend)


def test_a_best_rate_inside_the_grid_adds_no_rate(peak):
    table = screened(peak, [0.5, 1, 2], 2, a=0, b=0)
    assert sorted(table.lr.unique()) == [0.5, 1, 2] and len(table) == 12


def test_a_best_rate_at_an_end_extends_the_grid_for_every_arm_until_it_is_inside(peak):
    table = screened(peak, [1, 2, 4], 3, a=0, b=1)  # a is best at 1, the lowest
    assert sorted(table.lr.unique()) == [0.5, 1, 2, 4]
    assert table.groupby(["arm", "lr"]).size().tolist() == [2] * 8  # b too, with both seeds
    assert not rates.best_rates(table).at_edge.any()


def test_both_ends_grow_at_most_extend_times(peak):
    table = screened(peak, [1, 2, 4], 2, a=-5, b=3)
    assert sorted(table.lr.unique()) == [0.25, 0.5, 1, 2, 4, 8, 16]
    best = rates.best_rates(table).set_index("arm")
    assert best.lr.to_dict() == {"a": 0.25, "b": 8} and best.at_edge.to_dict() == {"a": True, "b": False}


def test_each_cell_extends_its_own_grid_by_the_unscaled_rates(peak):
    """Batch 64 scales the rates off the grid. Its best rate is inside the grid, that of batch 1 is not."""
    cells = [{"batch": 1}, {"batch": 64}]
    peak["a"] = 1
    moved = lambda arm, lr, seed, batch: SimpleNamespace(lr=lr * batch, seed=seed, batch=batch if batch > 1 else 4)
    table = protocol.screen(["a"], [1, 2, 4], [0], moved, None, cells, extend=1)
    assert sorted(table[table.batch == 1].lr) == [1, 2, 4, 8]
    assert sorted(table[table.batch == 64].lr) == [64, 128, 256]


def test_a_single_rate_is_not_extended(peak):
    assert screened(peak, [1], 2, a=5).lr.tolist() == [1, 1]


def test_a_seed_may_not_both_choose_and_confirm():
    with pytest.raises(WorkbenchError, match=r"\[1\]"):
        rates.refuse_shared([0, 1], [1, 2])


def test_the_arms_of_a_contrast_may_have_more_seeds(peak):
    peak.update(a=0, b=0, c=0)
    best = pd.DataFrame({"arm": ["a", "b", "c"], "lr": [1.0, 2.0, 4.0]})
    table = protocol.confirm(best, [5, 6], training, None, more={"a": [7], "c": [7]})
    assert table.groupby("arm").seed.agg(list).to_dict() == {"a": [5, 6, 7], "b": [5, 6], "c": [5, 6, 7]}
    assert table.groupby("arm").lr.unique().map(list).to_dict() == {"a": [1], "b": [2], "c": [4]}
    with pytest.raises(WorkbenchError, match=r"`seeds`.*arm b.*\[5, 6, 6\]"):
        protocol.confirm(best, [5, 6], training, None, more={"b": [6]})


def test_arms_with_the_best_rate_at_an_end_are_named_with_their_cell():
    rows = [
        {"arm": arm, "batch_size": batch, "lr": lr, "val_acc": -abs(lr - best)}
        for arm, batch, best in (("BN", 4, 1), ("NF", 4, 2), ("BN", 64, 2), ("NF", 64, 4))
        for lr in (1, 2, 4)
    ]
    assert rates.edges(pd.DataFrame(rows), by=["batch_size"]) == {"BN": "rate at 4", "NF": "rate at 64"}
    assert rates.edges(pd.DataFrame(rows[3:6]), by=["batch_size"]) == {}


def test_arms_with_the_best_threshold_at_an_end_are_named():
    def edges_for(best):
        rows = [{"arm": "NF+AGC", "clip": c, "lr": lr, "val_acc": -abs(lr - 2) - (c != best)}
                for c in (0.01, 0.04, 0.16) for lr in (1, 2, 4)]  # fmt: skip
        return rates.edges(pd.DataFrame(rows))

    assert edges_for(0.16) == edges_for(0.01) == {"NF+AGC": "threshold"} and edges_for(0.04) == {}
    table = rates.with_edges(
        pd.DataFrame({"arm": ["BN", "NF+AGC"]}),
        pd.DataFrame({"arm": "BN", "clip": None, "lr": [1, 2], "val_acc": [1, 0]}),
    )
    assert list(table.at_edge) == ["rate", ""]


def test_best_settings_keeps_the_best_setting_of_each_arm_and_cell():
    rows = [
        {"arm": arm, "clip": clip, "batch_size": batch, "lr": 0.4, "val_acc": accuracy}
        for batch, arm, clip, accuracy in (
            (4, "NF", np.nan, 0.5), (4, "NF+AGC", 0.01, 0.3), (4, "NF+AGC", 0.16, 0.4),
            (64, "NF", np.nan, 0.2), (64, "NF+AGC", 0.01, 0.6), (64, "NF+AGC", 0.16, 0.1),
        )
    ]  # fmt: skip
    best = rates.best_settings(pd.DataFrame(rows), by=["batch_size"])
    assert best.arm.tolist() == ["NF", "NF+AGC", "NF", "NF+AGC"] and best["clip"].dropna().tolist() == [0.16, 0.01]
    without = rates.best_settings(pd.DataFrame(rows)[["arm", "clip", "val_acc"]])
    assert without["clip"].dropna().tolist() == [0.01], "without columns that make cells"


def test_each_threshold_of_an_arm_is_screened_and_the_best_is_confirmed(peak):
    """With threshold 0.4 arm b loses 0.05 at every rate, so its best threshold is 0.1."""
    peak.update(a=0, b=1)
    seen = []

    def clipped(arm, lr, seed, clip):
        seen.append((arm, clip, lr, seed))
        loss = 0.05 if clip == 0.4 else 0.0
        return SimpleNamespace(
            lr=lr, seed=seed, batch=1, clip=clip, loss=loss, replace=lambda **_: clipped(arm, lr, seed, clip)
        )

    table = protocol.screen(["a", "b"], [1, 2], [0], clipped, None, clips={"b": [0.1, 0.4]})
    unclipped = [("a", None, lr, 0) for lr in (1, 1.414, 2, 2.828)]  # as many trials as b has
    assert seen == unclipped + [("b", clip, lr, 0) for clip in (0.1, 0.4) for lr in (1, 2)]
    best = rates.best_settings(rates.best_rates(table))
    assert list(zip(best.arm, best["clip"].fillna(0), best.lr, strict=True)) == [("a", 0, 1), ("b", 0.1, 2)]
    seen.clear()
    confirmed = protocol.confirm(best, [7], clipped, None, by=["clip"])
    assert seen[::2] == [("a", None, 1, 7), ("b", 0.1, 2, 7)] and confirmed["clip"].dropna().tolist() == [0.1]


@pytest.mark.parametrize(
    ("lrs", "n", "finer"),
    [
        ([4, 1], 1, [1, 4]),
        ([1, 4], 2, [1, 2, 4, 8]),
        ([1, 8], 3, [0.5, 1, 2, 4, 8, 16]),
        ([1, 16, 256], 4, [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]),
        ([0.4], 3, [0.2, 0.4, 0.8]),
    ],
)
def test_a_finer_grid_has_n_rates_for_each_rate(lrs, n, finer):
    assert protocol.finer(lrs, n) == finer and len(finer) == n * len(lrs)


def with_clip(arm, lr, seed, clip):
    return SimpleNamespace(lr=lr, seed=seed, batch=1, clip=clip, replace=lambda **_: with_clip(arm, lr, seed, clip))


def test_all_arms_have_equally_many_trials_also_after_their_grids_grow(peak):
    peak.update(a=-3, b=9, c=1)
    table = protocol.screen(list("abc"), [1, 4], [0, 1], with_clip, None, extend=2, clips={"b": [0.1, 0.2, 0.4, 0.8]})
    assert table.groupby("arm").size().tolist() == [2 * 4 * 6] * 3  # 2 seeds, 4 settings for each of 6 rates
    assert sorted(table[table.arm == "b"].lr.unique()) == [0.0625, 0.25, 1, 4, 16, 64]
    steps = np.log2(sorted(table[table.arm == "a"].lr.unique()))
    assert np.diff(steps) == pytest.approx(0.5, abs=1e-3)  # a quarter of the gap between 1 and 4
    two = protocol.screen(["a", "b"], [1], [0], with_clip, None, extend=2, clips={"b": [0.1, 0.2]})
    assert two.groupby("arm").lr.agg(list).to_dict() == {"a": [1, 2], "b": [1, 1]}


def test_arms_that_cannot_have_equally_many_trials_are_refused(peak):
    thresholds = {"a": [0.1, 0.2], "b": [0.1, 0.2, 0.4]}
    with pytest.raises(WorkbenchError, match=r"got 8 for a and 12 for b"):
        protocol.screen(["a", "b"], [1, 2, 4, 8], [0], with_clip, None, clips=thresholds)


def test_two_settings_are_confirmed_and_all_seeds_choose_between_them():
    """At rate 1 screening has 0.60, the confirmation 0.50 and 0.52: mean 0.54. At rate 2: 0.59, 0.55, 0.57."""
    screened = pd.DataFrame(
        [("a", np.nan, 0.5, 0.3), ("a", np.nan, 1.0, 0.60), ("a", np.nan, 2.0, 0.59),
         ("b", 0.1, 1.0, 0.4), ("b", 0.4, 1.0, 0.5), ("c", np.nan, 1.0, 0.2)],
        columns=["arm", "clip", "lr", "val_acc"],
    )  # fmt: skip
    best = rates.two_best(screened)
    assert best[["arm", "lr", "rank"]].values.tolist() == [
        ["a", 1, 1], ["a", 2, 2], ["b", 1, 1], ["b", 1, 2], ["c", 1, 1]
    ]  # fmt: skip
    assert best["clip"].tolist()[2:4] == [0.4, 0.1] and best.at_edge.tolist()[:2] == [False, True]
    fresh = {("a", 1.0): (0.50, 0.52), ("a", 2.0): (0.55, 0.57)}
    rows = [{"arm": r.arm, "clip": None if np.isnan(r.clip) else r.clip, "lr": r.lr, "seed": seed, "val_acc": accuracy,
             "test_acc": -accuracy}
            for r in best.itertuples()
            for seed, accuracy in enumerate(fresh.get((r.arm, r.lr), (0.4, 0.4)))]  # fmt: skip
    confirmed = rates.ranked(pd.DataFrame(rows), screened)
    assert len(confirmed) == 10
    judged = confirmed[confirmed["rank"] == 1].groupby("arm")[["lr", "clip"]].first()
    assert judged.lr.to_dict() == {"a": 2, "b": 1, "c": 1} and judged["clip"]["b"] == 0.4


def test_a_cell_that_screening_lacks_shares_its_trainings():
    screened = pd.DataFrame({"arm": "a", "lr": [1.0, 2.0], "val_acc": [0.5, 0.4]})
    confirmed = pd.DataFrame({"arm": "a", "lr": [1.0, 2.0, 1.0, 2.0], "protocol": ["x", "x", "y", "y"],
                              "val_acc": [0.5, 0.4, 0.1, 0.4]})  # fmt: skip
    assert rates.ranked(confirmed, screened, by=["protocol"])["rank"].tolist() == [1, 2, 2, 1]
