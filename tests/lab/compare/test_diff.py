"""Tests of the differences between two runs. Evidence: pairs by hand, and common mistakes with run ids."""

import pandas as pd
import pytest
from support.comparable import log

from workbench.cli.diff_table import sentence
from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.compare.diff import diff
from workbench.lab.statistics.intervals import Interval
from workbench.lab.statistics.verdict import Effect, Verdict
from workbench.training import TrainConfig, config_id


@pytest.fixture
def store(root):
    return Store()


def values(table):
    return {row.what: (row.a, row.b) for row in table.itertuples()}


def test_two_trainings_show_only_what_differs(store):
    a = log(store, 0.8, clip=0.04, seed=1)
    b = log(store, 0.7, clip=None, seed=2, model_args={"skip_gain": 1.0})
    result = diff(store, a, b[:10])
    assert values(result.settings) == {"clip": ("0.04", "none"), "model_args.skip_gain": ("", "1"), "seed": ("1", "2")}
    assert values(result.results)["val_acc"] == ("0.8", "0.7")
    assert result.seeds is None and result.warnings == ()


def test_different_code_is_listed_with_a_warning(store):
    result = diff(store, log(store, 0.8), log(store, 0.8, code="new"))
    assert values(result.settings) == {"code": ("c", "new")}
    assert result.warnings[0].startswith("different code: c (1 trainings), new (1 trainings)")


def test_groups_are_paired_by_seed(store):
    for seed, (a, b) in enumerate([(0.80, 0.70), (0.82, 0.71), (0.84, 0.75)]):
        log(store, a, seed=seed, clip=0.04)
        log(store, b, seed=seed, clip=None)
    log(store, 0.1, seed=9, clip=None)  # without a partner
    first, second = (config_id(TrainConfig(steps=4, batch_size=64, base_lr=1.6, clip=clip)) for clip in (0.04, None))
    result = diff(store, first, second)
    assert list(result.seeds.seed) == [0, 1, 2] and list(result.seeds.difference) == pytest.approx([0.10, 0.11, 0.09])
    # mean 0.1, sd 0.01, half width 4.3027 * 0.01 / sqrt(3) = 0.02484
    assert (result.interval.mean, result.interval.low) == pytest.approx((0.1, 0.1 - 0.02484), abs=1e-5)
    text = sentence(result)
    assert [
        part for part in ("validation accuracy", "(0, 1, 2)", "+10.00", "[+7.52, +12.48]") if part not in text
    ] == []
    assert "tie" not in text
    assert values(result.results)["failed"] == ("0 of 3", "0 of 4")
    assert values(result.settings)["clip"] == ("0.04", "none")


def test_a_difference_within_the_noise_is_a_tie_and_one_pair_has_no_interval(store):
    for seed, (a, b) in enumerate([(0.80, 0.81), (0.82, 0.79)]):
        log(store, a, seed=seed, clip=0.04)
        log(store, b, seed=seed, clip=None)
    first, second = (config_id(TrainConfig(steps=4, batch_size=64, base_lr=1.6, clip=clip)) for clip in (0.04, None))
    assert "tie" in sentence(diff(store, first, second))
    one_pair = diff(store, log(store, 0.9, seed=0, clip=0.08), second)
    assert one_pair.interval.n == 1 and "no interval" in sentence(one_pair)
    no_pair = diff(store, log(store, 0.9, seed=7, clip=0.08), second)
    assert no_pair.interval.n == 0 and "no pairs" in sentence(no_pair)


def execution(store, parameters, headline, holds):
    run_id = store.open_notebook(
        "large_batch", "large_batch.ipynb", parameters, "full", "large_batch", {"key.code": "k" * 64}
    )
    verdict = Verdict(holds, Effect("effect", Interval(0.5, 0.4, 0.6, 8)), headline, pd.DataFrame())
    store.set_tags(run_id, answer=verdict.answer, verdict=verdict.headline, effect=str(verdict.effect))
    store.log_metrics(run_id, verdict.metrics())
    store.close(run_id, "FINISHED")
    return run_id


def test_two_executions_show_parameters_and_verdicts(store):
    a = execution(store, {"clip": 0.01, "steps": 100}, "It holds so.", True)
    b = execution(store, {"clip": 0.02, "steps": 100}, "It does not.", False)
    result = diff(store, a, b)
    assert values(result.settings) == {"clip": ("0.01", "0.02")}
    results = values(result.results)
    assert results["claim"] == ("Holds", "Does not hold") and results["verdict"] == ("It holds so.", "It does not.")
    training = log(store, 0.5)
    with pytest.raises(WorkbenchError, match=rf"notebook execution \({a}\) .*training \({training}\)"):
        diff(store, a, training)


def test_unknown_and_ambiguous_names_are_refused(store, command):
    a, b = log(store, 0.8, seed=1), log(store, 0.7, seed=2)
    while a[0] != b[0]:  # run ids are random, so this ends when two begin with the same character
        b = store.open_notebook("large_batch", "n.ipynb", {}, "full", "x", {})
    with pytest.raises(WorkbenchError, match=rf"^{a[0]} is ambiguous.*{a}"):
        diff(store, a[0], b)
    with pytest.raises(WorkbenchError, match=rf"run or group of seeds '{a[:-1]}x'.*'{a}'"):
        diff(store, f"{a[:-1]}x", b)
    code, _, err = command("diff", "no-such-run", a)
    assert code == 2 and "run or group of seeds 'no-such-run'" in err


def test_a_training_without_a_result_is_refused(store):
    a = log(store, 0.8)
    running = store.open_training(TrainConfig(steps=4), "k", "full", role="screen", arm="NF", owner=None)
    with pytest.raises(WorkbenchError, match=f"{running} .*RUNNING"):
        diff(store, a, running)


def test_the_command_prints_both_sides(store, command):
    a, b = log(store, 0.8, clip=0.04), log(store, 0.7, clip=None)
    code, out, err = command("diff", a[:12], b[:12])
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert ["clip", "0.04", "none"] in lines and ["val_acc", "0.8", "0.7"] in lines
