"""The command `replay`. Evidence: what a user sees, and what the store holds.

A replay from a checkpoint or from the beginning is bitwise the recorded training. A fork is a training with another
threshold or rate. The rule for the first parameter to go is checked by hand.
"""

import dataclasses
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from support.mlflow_view import client
from support.observers import BeforeUpdate

from workbench.errors import WorkbenchError
from workbench.lab import Session, Store
from workbench.lab.jobs.job_run import checkpoints_folder
from workbench.lab.jobs.recorder import SEEN_AFTER
from workbench.lab.jobs.replay import First, compared, first_to_go, replay
from workbench.lab.jobs.run_all import run_training
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, train, worker_task
from workbench.training.checkpoint import Checkpoints

WILD = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0, "dropout": 0.1, "stochastic_depth": 0.1},
    batch_size=16,
    base_lr=200.0,
    clip=None,
    warmup=0.9,
    steps=40,
    train_size=200,
    eval_every=4,
    ema=0.9,
    progress=False,
    device="cpu",
)
CALM = WILD.replace(base_lr=0.4, clip=0.01, steps=12, ema=None)


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Draw figures only for tests with "figures" in their name, because each figure takes a second."""
    if "figures" not in request.node.name:
        monkeypatch.setattr(Store, "log_figure", lambda *_: None)


def trained(config, mode="full"):
    run_id, result, _ = run_training(config, Session(Store(), study="", mode=mode), role="screen", arm="NF")
    return run_id, result


def again(run, **settings):
    lines = []
    return replay(run, progress=False, say=lines.append, **settings), lines


def every_few_steps(monkeypatch, steps):
    monkeypatch.setattr(worker_task, "Checkpoints", lambda folder, **_: Checkpoints(folder, every_steps=steps))


def test_a_diverged_training_is_replayed_bit_for_bit_and_kept_with_figures(root, command):
    run_id, result = trained(WILD)
    end = result.metrics["failed_at_step"]
    assert result.outcome == "diverged" and end > 8
    code, output, err = command("replay", run_id[:8], "--back", 5)
    assert code == 0, err
    assert f"from its beginning, {end} steps" in output
    evaluations = len([row for row in result.history])
    assert f"bitwise as recorded: {evaluations} evaluations" in output and "divergence" in output
    assert f"original: diverged: {result.cause}" in output
    store = Store()
    (run,) = store.search("replays", "full")
    assert run.status == "FINISHED" and run.tags["replay_of"] == run_id
    assert run.metrics["as_recorded"] == 1 and run.tags["outcome"] == "as recorded"
    assert {"figures/replay.png", "tables/steps.parquet", "tables/ratios.csv"} <= set(store.artifacts(run.id))
    assert store.get(run_id).tags["replay"] == run.id
    history = client(store).get_metric_history(run.id, "loss")
    assert [point.step for point in history] == list(range(end - 4, end + 1))
    assert all(math.isfinite(point.value) and point.value < 1e300 for point in history)


def test_the_record_agrees_with_a_training_that_is_observed(root):
    """Losses against another training's; ratios against AGC's own statistics; updates against the weights."""
    run_id, result = trained(CALM)
    replayed, _ = again(run_id, back=3)
    assert replayed.same and replayed.verdict == f"bitwise as recorded: {len(result.history)} evaluations"
    losses, weights, tables = {}, {}, {}

    def observe(step, loss, model, optimizer):
        losses[step] = loss.item()
        weights[step] = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}

    watched = CALM.replace(telemetry_every=1)
    train(watched, tables=lambda name, table: tables.update({name: table}), observers=[BeforeUpdate(observe)])
    assert replayed.steps.step.tolist() == [10, 11, 12]
    assert replayed.steps.loss.tolist() == [losses[step] for step in (10, 11, 12)]
    agc = tables["agc"]
    observed = agc[agc.step >= 10].set_index(["step", "parameter"]).ratio_q100
    recorded = replayed.ratios.set_index(["step", "parameter"])
    assert len(observed) == 3 * agc.parameter.nunique()
    assert np.allclose(recorded.ratio[observed.index], observed, rtol=1e-5)
    for name in ("blocks.0.conv1.weight", "linear.weight"):
        before, after = (weights[step][name].reshape(len(weights[step][name]), -1) for step in (10, 11))
        moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1).clip(1e-3)
        assert recorded["update"][(10, name)] == pytest.approx(moved.max(), rel=1e-4)


def test_a_replay_starts_from_the_newest_checkpoint_before_its_steps(root, monkeypatch):
    every_few_steps(monkeypatch, 3)
    run_id, result = trained(WILD)
    end = result.metrics["failed_at_step"]
    folder = checkpoints_folder("full", result.key)
    kept = Checkpoints(folder).steps()
    assert len(kept) == 3 and kept[0] < end and kept[0] >= end - 3
    replayed, lines = again(run_id, back=end - kept[1])
    assert replayed.same and f"from the checkpoint of step {kept[1]}, {end - kept[1]} steps" in lines[-1]
    assert replayed.steps.step.tolist() == list(range(kept[1] + 1, end + 1))
    whole, lines = again(run_id, back=end)
    assert whole.same and "from its beginning" in lines[-1]
    tail = whole.steps[whole.steps.step > kept[1]].reset_index(drop=True)
    pd.testing.assert_frame_equal(replayed.steps, tail, check_exact=True)
    assert Checkpoints(folder).steps() == kept  # the replay adds and removes none
    shutil.rmtree(folder)
    assert again(run_id, back=2)[0].same


def test_a_training_that_completes_leaves_no_checkpoints(root, monkeypatch):
    every_few_steps(monkeypatch, 2)
    _, result = trained(CALM)
    assert result.outcome in FINISHED and not checkpoints_folder("full", result.key).exists()


@pytest.mark.parametrize(
    ("config", "checkpoints"),
    [(WILD, None), (WILD.replace(clip=50.0, clip_exempt=["stage1"]), 3), (WILD, 1)],
    ids=["no clip, from the beginning", "clip, from a checkpoint", "from the checkpoint of the same step"],
)
def test_a_fork_shares_the_past_and_continues_with_another_threshold_and_rate(root, monkeypatch, config, checkpoints):
    if checkpoints:
        every_few_steps(monkeypatch, checkpoints)
    run_id, result = trained(config)
    end = result.metrics["failed_at_step"]
    assert result.outcome == "diverged"
    replayed, _ = again(run_id, back=4, clip=0.001, lr=1.25)
    assert replayed.same and replayed.ends["original"] == f"diverged: {result.cause}"
    fork, original = (replayed.steps[replayed.steps.run == run].set_index("step") for run in ("fork", "original"))
    assert fork.index.tolist() == list(range(end - 3, min(40, end + 4) + 1))
    assert fork.loss.iloc[0] == original.loss.iloc[0] and (fork.loss[original.index] != original.loss)[1:].all()
    assert np.allclose(fork.lr[original.index] / original.lr, 1.25 / config.lr)  # the schedule keeps its shape
    assert replayed.ends["fork"].startswith("not diverged at step")
    updates = replayed.ratios[(replayed.ratios.run == "fork")].pivot(index="step", columns="parameter", values="update")
    clipped = updates["blocks.2.conv1.weight"]
    assert clipped.lt(updates["linear.weight"]).all()  # the classifier stays exempt


@pytest.mark.parametrize("clip", [None, 0.01])
def test_a_fork_from_the_beginning_is_the_training_with_that_threshold(root, clip):
    config = CALM.replace(clip=clip, clip_exempt=["stage1"])
    run_id, _ = trained(config)
    replayed, _ = again(run_id, back=100, clip=0.002)
    losses = {}
    train(
        config.replace(clip=0.002), observers=[BeforeUpdate(lambda step, loss, *_: losses.update({step: loss.item()}))]
    )
    fork = replayed.steps[replayed.steps.run == "fork"]
    assert dict(zip(fork.step, fork.loss, strict=True)) == losses
    assert losses[12] != replayed.steps.loss[11] and replayed.ends["fork"].startswith("not diverged at step 12")


@pytest.mark.slow
def test_a_fork_from_the_beginning_is_the_training_with_that_rate(root):
    run_id, _ = trained(CALM)
    replayed, _ = again(run_id, back=100, lr=0.05)
    losses = {}
    other = CALM.replace(base_lr=0.05, scale_lr=False)
    train(other, observers=[BeforeUpdate(lambda step, loss, *_: losses.update({step: loss.item()}))])
    fork = replayed.steps[replayed.steps.run == "fork"]
    assert fork.step.tolist() == list(losses) and np.allclose(fork.loss, list(losses.values()), rtol=1e-6)


def test_a_replay_that_differs_from_the_record_says_where(root, monkeypatch):
    run_id, result = trained(WILD)
    store, changed = Store(), json.loads(result.to_json())
    changed["history"][0]["train_loss"] += 1e-7
    store.log_text(run_id, json.dumps(changed), "result.json")
    replayed, _ = again(run_id)
    assert not replayed.same and replayed.verdict.startswith("differs from the record: train_loss at step 4 was")
    assert store.get(replayed.run_id).tags["outcome"] == "not as recorded"


def test_a_replay_that_diverges_before_its_steps_says_so(root, monkeypatch):
    from workbench.training import assembly

    run_id, result = trained(WILD)
    end = int(result.metrics["failed_at_step"])
    monkeypatch.setattr(assembly, "DIVERGED_SHARE", 0.0)  # as if the code had changed: it ends at the first loss
    with pytest.raises(WorkbenchError, match=rf"{run_id}.*{end - 1} to {end}.*--back"):
        replay(run_id, back=2)


def test_the_comparison_covers_every_number_and_the_cause():
    result = train(WILD)
    assert compared(result, result.history, result, done=0)[0]
    other = dataclasses.replace(result, cause="another")
    assert "was another; is training loss" in compared(other, result.history, result, done=0)[1]
    assert "is not diverged" in compared(result, result.history, None, done=0)[1]
    assert not compared(result, result.history[:-1], result, done=0)[0]
    complete = dataclasses.replace(result, outcome="complete")
    same, verdict = compared(complete, [], None, done=100)
    assert not same and "no evaluation" in verdict


def test_after_a_change_of_code_a_replay_says_so_and_starts_from_the_beginning(root, monkeypatch):
    from workbench.lab.jobs import replay as module

    every_few_steps(monkeypatch, 3)
    run_id, _ = trained(WILD)
    monkeypatch.setattr(module, "code_hash", lambda: "of other code")
    replayed, lines = again(run_id, back=3)
    assert replayed.same and "code has changed" in lines[0] and "from its beginning" in lines[-1]


def test_a_device_that_notices_a_divergence_late_gives_the_same_replay(root, monkeypatch):
    from workbench.training import assembly, watch

    run_id, result = trained(WILD)
    monkeypatch.setattr(assembly, "LossWatch", lambda limit, every: watch.LossWatch(limit, 10))
    monkeypatch.setitem(SEEN_AFTER, "cpu", 10)
    replayed, _ = again(run_id, back=4)
    assert replayed.same and replayed.steps.step.max() == result.metrics["failed_at_step"]


def table(**series):
    steps = range(1, 1 + len(next(iter(series.values()))))
    return pd.DataFrame(
        [
            {"step": step, "parameter": name, "ratio": values[step - 1]}
            for step in steps
            for name, values in series.items()
        ]
    )


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"a": [1, 1, 1, 1, 11, 50], "b": [1, 1, 1, 12, 50, 90]}, First("b", 4, 12.0, True)),
        ({"a": [1, 1, 1, 1, 20, 50], "b": [1, 1, 1, 12, 2, 90]}, First("a", 5, 20.0, True)),  # b came back
        ({"a": [1, 1, 1, 1, 20, 50], "b": [1, 1, 1, 1, 30, 90]}, First("b", 5, 30.0, True)),  # both: the larger rise
        ({"a": [2, 2, 2, 2, 2, 2], "b": [1, 1, 1, 1, math.nan, math.nan]}, First("b", 5, math.inf, True)),
        ({"a": [1, 2, 2, 2, 2, 3], "b": [1, 1, 1, 1, 2, 2]}, First("b", 5, 2.0, False)),
        ({"a": [0, 0, 0, 0, 0, 0], "b": [3, 3, 3, 3, 3, 33]}, First("b", 6, 11.0, True)),  # no gradient: never goes
        ({"a": [5.0]}, First("a", 1, 1.0, False)),
    ],
)
def test_first_to_go_agrees_with_cases_by_hand(series, expected):
    assert first_to_go(table(**series)) == expected
    assert str(expected).startswith("first to go: " if expected.went else "none goes")
    assert not first_to_go(table(**series), diverged=False).went


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["0123456789abcdef"], ["run id", "'0123456789abcdef'"]),
        (["{run}", "--back", "0"], ["`back`", "above 0", "got 0"]),
        (["{run}", "--clip", "-1"], ["`clip`", "above 0", "-1.0"]),
        (["{run}", "--lr", "0"], ["`lr`", "above 0", "0.0"]),
        (["{run}", "--device", "cuda:9"], ["cuda:9"]),
        (["{check}"], ["{check}", "is a check"]),
        (["{broken}"], ["{broken}", "FAILED", "OutOfMemory"]),
        ([""], ["run id", "''"]),
    ],
)
def test_invalid_replays_are_refused_before_anything_is_kept(root, command, arguments, words):
    store = Store()
    ids = {"run": trained(CALM.replace(steps=1))[0]}
    ids["check"] = store.open_run("checks", "x", {}, {}, source="test")
    ids["broken"] = store.open_training(CALM, "k", "full", role="screen", arm="NF", owner=None)
    store.set_tags(ids["broken"], cause="OutOfMemory")
    store.close(ids["broken"], "FAILED")
    code, _, err = command("replay", *(text.format(**ids) for text in arguments))
    assert code == 2 and all(word.format(**ids) in err for word in words), err
    assert len(store.search("checks", "full")) == 1


def test_an_ambiguous_run_id_and_changed_images_are_refused(root, monkeypatch, image_folder):
    config = CALM.replace(data=str(image_folder), steps=1, batch_size=4, train_size=None, model_args={})
    ids = [
        trained(config.replace(seed=seed))[0] for seed in range(17)
    ]  # more than hex digits, so two ids share their first digit
    shared = next(a[0] for i, a in enumerate(ids) for b in ids[:i] if a[0] == b[0])
    with pytest.raises(WorkbenchError, match=f"trainings begin with {shared} .*run id"):
        again(shared)
    next(image_folder.rglob("*.png")).unlink()
    with pytest.raises(WorkbenchError, match=f"images.*{ids[0]}"):
        again(ids[0])


def test_quick_trainings_can_be_replayed(root):
    run_id, _ = trained(CALM.replace(steps=2), mode="quick")
    assert again(run_id)[0].same
