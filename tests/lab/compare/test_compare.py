"""Tests of comparisons.

Evidence: intervals by hand and by scipy, ties and warnings on small tables, and the command's output on a small store.
"""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.checkout import CHECKOUT
from support.comparable import log, rows

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.compare import selection
from workbench.lab.compare.figures import curves_figure, parallel_figure
from workbench.lab.compare.summary import as_text, verdict
from workbench.lab.compare.table import at_equal_compute, compare, concerns, differences, from_store
from workbench.lab.studies.notebook import execute

HIGH = [0.80, 0.82, 0.84]
NEAR = [0.79, 0.82, 0.83]  # HIGH minus 1, 0 and 1 points
LOW = [0.50, 0.52, 0.54]  # HIGH minus 30 points in every seed


def test_group_means_and_intervals_match_values_by_hand():
    result = compare(rows({"config_id": "low", "val_acc": LOW}, {"config_id": "high", "val_acc": HIGH}))
    best, second = result.table.itertuples()
    assert (best.config_id, best.rank, best.seeds, second.rank) == ("high", 1, 3, 2)
    assert best.mean == pytest.approx(0.82)
    # sd 0.02, n = 3, t(0.975, 2) = 4.3027: half width 0.02 / sqrt(3) * 4.3027 = 0.04968
    assert (best.low, best.high) == pytest.approx((0.82 - 0.04968, 0.82 + 0.04968), abs=1e-5)
    assert second.minus_best == pytest.approx(-0.30) and second.interval == "paired"
    assert not second.tie and not best.tie


def test_groups_within_the_noise_tie():
    result = compare(
        rows(
            {"config_id": "a", "val_acc": HIGH}, {"config_id": "b", "val_acc": NEAR}, {"config_id": "c", "val_acc": LOW}
        )
    )
    assert list(result.table["rank"]) == [1, 1, 3]
    assert list(result.table.tie) == [True, True, False]
    assert list(as_text(result)["rank"]) == ["1=", "1=", "3"]
    assert as_text(result)["minus best, points"][1].endswith("tie")
    assert any(note.startswith("tie: 2 groups") for note in result.notes)


def test_the_verdict_names_the_best_group_and_the_indistinguishable_ones():
    high, near, low = (
        {"config_id": name, "val_acc": a, "arm": name} for name, a in zip("abc", (HIGH, NEAR, LOW), strict=True)
    )
    opening = "Highest validation accuracy: a, 82.00% [77.03%, 86.97%], 3 seeds."
    assert verdict(compare(rows(high, low))) == f"{opening} It is significantly better than the other group."
    assert verdict(compare(rows(high, near, low))) == f"{opening} It is indistinguishable from 1 of 2 other groups."
    without_others = verdict(compare(rows(high)))
    assert without_others.startswith(opening) and "No other group" in without_others
    single_seeds = compare(rows({"config_id": "a", "val_acc": [0.9]}, {"config_id": "b", "val_acc": [0.1]}))
    assert verdict(single_seeds).startswith("No group is ranked") and "2 groups" in verdict(single_seeds)


def test_pairs_by_seed_distinguish_groups_that_welchs_interval_does_not():
    a, b = [0.5, 0.6, 0.7, 0.8], [0.491, 0.59, 0.69, 0.789]
    paired = compare(rows({"config_id": "a", "val_acc": a}, {"config_id": "b", "val_acc": b}))
    assert list(paired.table["rank"]) == [1, 2]
    other_seeds = [10.0, 11.0, 12.0, 13.0]
    welch = compare(rows({"config_id": "a", "val_acc": a}, {"config_id": "b", "val_acc": b, "seed": other_seeds}))
    assert list(welch.table["rank"]) == [1, 1] and welch.table.interval[1] == "Welch"


def test_the_intervals_match_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.7, 0.02, 6), rng.normal(0.6, 0.05, 4)
    unpaired = np.full((10, 2), np.nan)
    unpaired[:6, 0], unpaired[6:, 1] = a, b
    _, low, high, paired = differences(unpaired, 0)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert not paired[1] and (low[1], high[1]) == pytest.approx((expected.low, expected.high))
    shared = np.full((6, 2), np.nan)
    shared[:, 0], shared[:4, 1] = a, b
    _, low, high, paired = differences(shared, 0)
    expected = stats.ttest_rel(a[:4], b).confidence_interval(0.95)
    assert paired[1] and (low[1], high[1]) == pytest.approx((expected.low, expected.high))


def test_equal_groups_without_spread_tie_and_different_groups_do_not():
    guessing = compare(rows({"config_id": "a", "val_acc": [0.1] * 3}, {"config_id": "b", "val_acc": [0.1] * 3}))
    assert list(guessing.table["rank"]) == [1, 1]
    different = rows(
        {"config_id": "a", "val_acc": [0.3] * 3}, {"config_id": "b", "val_acc": [0.1] * 3, "seed": [7.0, 8.0, 9.0]}
    )
    assert list(compare(different).table["rank"]) == [1, 2]


def test_a_group_with_one_seed_is_not_ranked():
    result = compare(
        rows(
            {"config_id": "alone", "val_acc": [0.9]},
            {"config_id": "a", "val_acc": HIGH},
            {"config_id": "b", "val_acc": LOW},
        )
    )
    assert list(result.table.config_id) == ["alone", "a", "b"]
    assert (
        math.isnan(result.table["rank"][0])
        and math.isnan(result.table.low[0])
        and math.isnan(result.table.minus_best[0])
    )
    assert list(result.table["rank"][1:]) == [1, 2]
    assert "1 of 3 groups have one seed" in " ".join(result.notes)
    single = compare(rows({"config_id": "a", "val_acc": [0.9]}, {"config_id": "b", "val_acc": [0.8]}))
    assert single.table["rank"].isna().all() and "every group has one seed" in " ".join(single.notes)


def test_failed_trainings_count_and_pruned_or_running_ones_do_not():
    result = compare(
        rows(
            {"config_id": "a", "val_acc": [0.8, 0.1], "outcome": ["complete", "diverged"], "failed": [0.0, 1.0]},
            {"config_id": "b", "val_acc": [0.4, 0.4], "outcome": "pruned"},
            {"config_id": "c", "val_acc": [0.4], "outcome": "", "status": "RUNNING"},
        )
    )
    assert (result.table["mean"][0], result.table.failed[0], len(result.table)) == (pytest.approx(0.45), 1, 1)
    assert "left out: 2 pruned, 1 running." in result.notes


def test_seeds_of_other_code_are_not_pooled_and_repetitions_count_once():
    two_codes = rows({"config_id": "a", "val_acc": HIGH}, {"config_id": "a", "val_acc": LOW, "code": "other"})
    assert list(compare(two_codes).table.seeds) == [3, 3]
    repeated = pd.concat(
        [rows({"config_id": "a", "val_acc": HIGH}), rows({"config_id": "a", "val_acc": LOW, "run_id": ["x", "y", "z"]})]
    )
    result = compare(repeated)
    assert list(result.table.seeds) == [3] and result.table["mean"][0] == pytest.approx(0.82)  # the newest come first
    assert "3 trainings are repetitions" in " ".join(result.notes)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"data_digest": "e", "data": "cifar10"}, "different data: mnist5k d (3 trainings), cifar10 e (3 trainings)"),
        ({"code": "x"}, "different code: c (3 trainings), x (3 trainings)"),
        ({"device": "cuda"}, "different devices: cpu"),
        ({"train_size": 500.0}, "different numbers of training images: all (3 trainings), 500 (3 trainings)"),
        ({"role": "search"}, "mixed roles: trials of a search"),
        ({"role": "confirm"}, "mixed roles: trainings that chose a setting"),
        ({"val_loss": math.nan}, "unknown ends: 3 trainings"),
    ],
)
def test_a_warning_names_what_cannot_be_compared(change, phrase):
    fair = {"config_id": "a", "val_acc": HIGH}
    assert concerns(rows(fair, {"config_id": "b", "val_acc": LOW})) == []
    (warning,) = concerns(rows(fair, {"config_id": "b", "val_acc": LOW, **change}))
    assert phrase in warning


def test_trainings_of_an_older_version_without_a_train_size_only_warn_about_code():
    older, newer = {"config_id": "a", "val_acc": HIGH, "code": "x"}, {"config_id": "b", "val_acc": LOW}
    (warning,) = concerns(rows(older, {**newer, "train_size": 500.0}))
    assert warning.startswith("different code")


def test_collapsed_trainings_count_as_failed_and_have_a_column_of_their_own():
    ends = {"outcome": ["complete", "collapsed", "diverged"], "failed": [0.0, 1.0, 1.0]}
    table = compare(rows({"config_id": "a", "val_acc": [0.8, 0.12, 0.1], **ends})).table
    assert (table.failed[0], table.collapsed[0], table["mean"][0]) == (2, 1, pytest.approx(0.34))


def test_ends_of_older_trainings_are_judged_again_where_loss_and_classes_are_known(root):
    """Loss 2.2 is above 0.95 ln 10 = 2.187. An unknown folder of images has an unknown number of classes."""
    store = Store()
    for data, loss in (("mnist5k", 2.18), ("mnist5k", 2.2), ("mine", 2.2)):
        run = log(store, 0.2, data=data, classes=None, seed=len(store.search("trainings", "full")))
        store.log_metrics(run, {"val_loss": loss, "failed": 1}, step=5)
    picked = selection.pick(store).set_index("seed").sort_index()
    assert list(picked.outcome) == ["complete", "collapsed", "complete"]
    assert list(picked.failed) == [0, 1, 0]
    assert list(selection.measured(picked)) == [True, True, False]


def test_confirmations_are_compared_on_the_test_split():
    confirmed = {"role": "confirm", "test_acc": [0.7, 0.72]}
    result = compare(
        rows(
            {"config_id": "a", "val_acc": [0.8, 0.82], **confirmed},
            {"config_id": "b", "val_acc": [0.9, 0.9], **confirmed},
        )
    )
    assert result.metric == "test_acc" and result.table["mean"][0] == pytest.approx(0.71)
    mixed = compare(
        rows({"config_id": "a", "val_acc": [0.8, 0.82], **confirmed}, {"config_id": "b", "val_acc": [0.9, 0.9]})
    )
    assert mixed.metric == "val_acc"


def test_accuracies_at_equal_compute_match_values_by_hand():
    table = rows(
        {"config_id": "slow", "val_acc": [0.8], "samples_seen": 400.0},
        {"config_id": "long", "val_acc": [0.9], "samples_seen": 1000.0},
        {"config_id": "diverged", "val_acc": [0.1], "outcome": "diverged", "failed": 1.0},
    )
    curves = pd.DataFrame(
        [
            ("slow0", 200, 1, 0.4),
            ("slow0", 400, 2, 0.8),
            ("long0", 0, 0, 0.1),
            ("long0", 1000, 10, 0.9),
            ("diverged0", 100, 1, 0.2),
        ],
        columns=["run_id", "samples_seen", "seconds", "val_acc"],
    )
    at_budget, budget = at_equal_compute(table, curves, "samples")
    assert budget == 400  # there, "long" has 0.1 + 0.8 * 400 / 1000, and "diverged" counts as guessing
    assert list(at_budget.val_acc) == pytest.approx([0.8, 0.42, 0.1])
    at_budget, budget = at_equal_compute(table, curves, "seconds")
    assert budget == 2 and list(at_budget.val_acc) == pytest.approx([0.8, 0.26, 0.1])
    with pytest.raises(WorkbenchError, match=r"'second'.*'seconds'"):
        at_equal_compute(table, curves, "second")


@pytest.fixture
def store(root):
    """A store with the studies `mine` (NF at two rates, and BN), `smooth` and, in quick mode, `tiny`.

    The two groups of `smooth` differ in a field that is not a column.
    """
    store = Store()
    for seed in range(3):
        log(store, 0.8 + seed / 100, seed=seed, arm="NF+AGC", seconds=40)
        log(store, 0.79 + seed / 100, seed=seed, arm="BN", clip=None, model="resnet_tiny")
        log(store, 0.1, seed=seed, base_lr=25.6, clip=None, outcome="diverged")
        log(store, 0.5 + seed / 100, seed=seed, study="smooth", label_smoothing=0.1)
        log(store, 0.5 + seed / 50, seed=seed, study="smooth", label_smoothing=0.2)
    log(store, 0.3, mode="quick", study="tiny")
    return store


def test_pick_selects_by_study_tag_role_filter_run_id_and_mode(store):
    assert len(selection.pick(store)) == 15
    assert set(selection.pick(store, ["mine"]).arm) == {"NF+AGC", "BN", "NF"}
    assert len(selection.pick(store, ["mine"], tags={"arm": "BN"}, role="screen")) == 3
    assert list(selection.pick(store, filter="metrics.failed = 1").lr.unique()) == [6.4]
    run_id = selection.pick(store, ["smooth"]).run_id[0]
    assert list(selection.pick(store, [run_id[:12]]).run_id) == [run_id]
    assert len(selection.pick(store, ["mine", run_id])) == 10
    assert len(selection.pick(store, mode="quick")) == 1


MISTAKES = [
    ({"what": ["smoth"]}, ["study or training", "'smoth'", "'smooth'"]),
    ({"what": ["tiny"]}, ["study 'tiny'", "only quick trainings", "--quick"]),
    ({"filter": "metrics.val_ac > 0.5"}, ["metric", "'val_ac'", "'val_acc'"]),
    ({"filter": "val_acc >> 3"}, ["filter", "val_acc >> 3"]),
    ({"tags": {"arm": "NF+AG"}}, ["tag arm", "'NF+AG'", "'NF+AGC'"]),
    ({"tags": {"arn": "BN"}}, ["tag", "'arn'", "'arm'"]),
    ({"role": "confrm"}, ["role", "'confrm'", "'confirm'"]),
    ({"filter": "metrics.val_acc > 2"}, ["none of 15 trainings", "metrics.val_acc > 2"]),
    ({"equal": "sampels"}, ["compute", "'sampels'", "'samples'"]),
]


def test_a_selection_that_the_store_does_not_have_is_refused_with_the_nearest_name(store):
    log_executions(store)
    for arguments, parts in MISTAKES:
        with pytest.raises(WorkbenchError) as error:
            from_store(store, **arguments)
        assert [part for part in parts if part not in str(error.value)] == []


def log_executions(store):
    """Store an execution of `smooth` and a quick one of `tiny`, so that both names are known."""
    for study, mode in (("smooth", "full"), ("tiny", "quick")):
        store.close(store.open_notebook(study, "n.ipynb", {}, mode, study, {}), "FINISHED")


def test_the_error_for_an_empty_store_names_a_command_that_makes_trainings(root):
    with pytest.raises(WorkbenchError, match=r"no trainings.*`workbench study"):
        from_store(Store())


def test_groups_that_differ_in_a_field_without_a_column_get_this_column(store):
    result = from_store(store, ["smooth"])
    assert sorted(result.table.label_smoothing) == [0.1, 0.2]
    assert "label_smoothing" not in from_store(store, ["mine"]).table


def test_a_training_without_an_evaluation_before_equal_seconds_is_left_out(store):
    result = from_store(store, ["mine"], equal="seconds")  # NF+AGC is first evaluated at 20 of its 40 s, after 10
    assert list(result.table.arm) == ["BN", "NF"] and "accuracy at 10 device seconds" in result.notes[0]
    assert "3 trainings without validation accuracy" in " ".join(result.notes)


def test_the_command_prints_the_verdict_and_table_and_writes_csv_and_figures(store, command, tmp_path):
    files = {kind: tmp_path / f"{kind}.svg" for kind in ("curves", "parallel")}
    options = [part for kind, file in files.items() for part in (f"--{kind}", file)]
    code, out, err = command("compare", "mine", "--csv", tmp_path / "t.csv", *options)
    assert code == 0, err
    first, *lines = out.splitlines()
    assert first.startswith("Highest validation accuracy: NF+AGC, ") and first.endswith(
        "better than all 2 other groups."
    )
    # Every seed differs by one point, so the pairs distinguish the groups although the groups' intervals overlap.
    assert lines[0].split()[:3] == ["rank", "arm", "batch"] and lines[1].split()[:2] == ["1", "NF+AGC"]
    assert "81.00% [78.52%, 83.48%]" in lines[1] and "-1.00 [-1.00, -1.00]" in lines[2]
    assert "http://127.0.0.1:5000/#/compare-runs?" in out
    table = pd.read_csv(tmp_path / "t.csv")
    assert list(table["mean"]) == pytest.approx([0.81, 0.8, 0.1]) and list(table.failed) == [0, 0, 3]
    assert all("<svg" in file.read_text() for file in files.values())
    assert "diverged" in files["parallel"].read_text() and "3 of 3 failed" in files["curves"].read_text()


@pytest.mark.slow
def test_the_notebook_shows_the_same_and_names_a_command_for_an_empty_store(store, another_root, tmp_path):
    source = CHECKOUT / "notebooks" / "compare_runs.ipynb"
    execute(source, tmp_path / "out.ipynb", {"what": ["mine"], "csv": str(tmp_path / "t.csv")})
    page = (tmp_path / "out.html").read_text()
    assert "NF+AGC" in page and "81.00%" in page and "#/compare-runs?" in page
    outputs = [o for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for o in c.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert len(pd.read_csv(tmp_path / "t.csv")) == 3
    another_root()
    execute(source, tmp_path / "empty.ipynb", {})
    page = (tmp_path / "empty.html").read_text()
    assert "the store has no trainings yet" in page and "`workbench study" in page


def test_mistakes_on_the_command_line_exit_with_2_and_one_line(store, command):
    for arguments in (
        ["compare", "mine", "--curves", "x.gif"],
        ["compare", "--tag", "arm"],
        ["compare", "--role", "x"],
    ):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "") and err.startswith("workbench: ") and len(err.splitlines()) == 1


def test_figures_mark_failed_trainings(store):
    result = from_store(store, ["mine"])
    lines = curves_figure(result, selection.curves(store, result.rows.run_id)).axes[0].get_lines()
    assert sum(line.get_marker() == "x" and len(line.get_xdata()) == 1 for line in lines) == 3
    crosses = [line for line in parallel_figure(result).axes[0].get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 3 + 1  # the last one is in the legend
