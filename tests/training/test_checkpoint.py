"""Checkpoints of a training. Evidence: after an interruption or kill -9 at any step, the final weights are the same.

Damaged checkpoints are skipped.
"""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file
from support.checkout import CHECKOUT

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, train
from workbench.training.checkpoint import KEPT, REWIND, Checkpoints, Resuming, superseded
from workbench.training.distributed import World

CONFIG = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0, "dropout": 0.1, "stochastic_depth": 0.1},
    batch_size=32,
    micro_batch=20,
    base_lr=1.6,
    steps=14,
    eval_every=4,
    train_size=100,
    mix=True,
    cutout=5,
    ema=0.9,
    sam_rho=0.05,
    telemetry_every=3,
    progress=False,
    device="cpu",
)


def plain(result):
    drop = ("seconds", "device_seconds", "images_per_second")
    rows = [{k: v for k, v in row.items() if k not in drop} for row in result.history]
    return rows, {k: v for k, v in result.metrics.items() if k not in drop}, result.outcome


class Interruption(Exception):
    pass


def interrupt_in_step(folder, at, monkeypatch, save):
    """Train with a checkpoint at every step, and raise an error in step `at`."""
    from workbench.training import gradients

    original, seen = gradients.SAM.descend, []

    def descend(self):
        seen.append(1)
        if len(seen) == at:
            raise Interruption
        original(self)

    monkeypatch.setattr(gradients.SAM, "descend", descend)
    with pytest.raises(Interruption):
        train(CONFIG, checkpoints=Checkpoints(folder, every_steps=1), save=save)
    monkeypatch.undo()


def test_an_interrupted_training_ends_with_the_same_weights_rows_and_tables(tmp_path, monkeypatch):
    tables = {}
    whole = train(CONFIG, tables=lambda n, t: tables.update({n: t}), save=tmp_path / "whole.safetensors")
    wanted, average = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "whole.ema.safetensors")
    for at in (1, 2, 6, 14):
        folder, file = tmp_path / str(at), tmp_path / f"{at}.safetensors"
        interrupt_in_step(folder, at, monkeypatch, file)
        assert not file.exists()
        logged, again = [], {}
        checkpoints = Checkpoints(folder, every_steps=5)
        keep = lambda name, table, again=again: again.update({name: table})
        result = train(CONFIG, logged.append, keep, checkpoints=checkpoints, save=file)
        assert plain(result) == plain(whole)
        assert [row["step"] for row in logged] == [4, 8, 12, 14]  # every row once, also those before the interruption
        assert all(torch.equal(v, wanted[k]) for k, v in load_file(file).items())
        assert all(torch.equal(v, average[k]) for k, v in load_file(tmp_path / f"{at}.ema.safetensors").items())
        assert again["agc"].equals(tables["agc"])


def stop_at(step):
    calls = []
    return lambda: calls.append(1) or len(calls) == step


def test_a_stopped_training_ends_with_the_same_weights_rows_and_tables(tmp_path):
    tables, again = {}, {}
    whole = train(CONFIG, tables=lambda n, t: tables.update({n: t}), save=tmp_path / "whole.safetensors")
    wanted = load_file(tmp_path / "whole.safetensors")
    checkpoints, file, rows = Checkpoints(tmp_path / "here"), tmp_path / "x.safetensors", []
    for at in (1, 3, 5):  # counted from each start, so after steps 1, 4 and 9
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, checkpoints=checkpoints, save=file, stop=stop_at(at))
    assert [p.name for p in sorted((tmp_path / "here").iterdir())] == [f"step-0000000{n}" for n in (1, 4, 9)]
    assert not file.exists()
    never = stop_at(0)
    result = train(
        CONFIG, rows.append, lambda n, t: again.update({n: t}), checkpoints=checkpoints, save=file, stop=never
    )
    assert plain(result) == plain(whole) and [row["step"] for row in rows] == [4, 8, 12, 14]
    assert all(torch.equal(v, wanted[k]) for k, v in load_file(file).items())
    assert again["agc"].equals(tables["agc"])


def test_tables_are_complete_after_a_stop(tmp_path):
    """The stop after step 3 comes between rows: those of steps 0 and 2 are kept, and those of step 4 follow."""
    settings = CONFIG.replace(sam_rho=None, mix=False, steps=5, telemetry_every=2, signal_every=2, curvature_every=4)
    whole, again, checkpoints = {}, {}, Checkpoints(tmp_path / "here")
    train(settings, tables=lambda n, t: whole.update({n: t}))
    with pytest.raises(KeyboardInterrupt):
        train(settings, checkpoints=checkpoints, stop=stop_at(3))
    train(settings, tables=lambda n, t: again.update({n: t}), checkpoints=checkpoints)
    assert set(again) == {"agc", "signal", "curvature"} and list(again["curvature"].step) == [0, 4]
    assert all(again[name].equals(whole[name]) for name in whole)


def test_without_checkpoints_a_stop_interrupts_the_training_except_after_the_last_step():
    settings = CONFIG.replace(steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(settings, stop=stop_at(2))
    assert train(settings, stop=stop_at(3)).outcome in FINISHED


@pytest.mark.slow
def test_a_training_that_was_killed_at_ten_random_steps_ends_with_the_same_weights(tmp_path):
    script = textwrap.dedent("""
        import sys
        from training.test_checkpoint import CONFIG
        from workbench.training import train
        from workbench.training.checkpoint import Checkpoints
        train(CONFIG.replace(steps=60), checkpoints=Checkpoints(sys.argv[1], every_steps=1), save=sys.argv[2])
    """)
    environment = {**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}"}
    train(CONFIG.replace(steps=60), save=tmp_path / "whole.safetensors")
    folder = tmp_path / "checkpoints"
    arguments = [sys.executable, "-c", script, str(folder), str(tmp_path / "x.safetensors")]
    rng, kills = random.Random(0), 0
    while kills < 10:
        before = sorted(folder.glob("step-*"))[-1:]
        worker = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        while worker.poll() is None and sorted(folder.glob("step-*"))[-1:] == before:
            assert time.monotonic() - started < 60
            time.sleep(0.01)
        time.sleep(rng.random() * 0.1)
        if worker.poll() is not None:
            break
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        kills += 1
    assert kills >= 5
    subprocess.run(arguments, env=environment, check=True)
    wanted = load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(v, wanted[k]) for k, v in load_file(tmp_path / "x.safetensors").items())


def saved(folder, steps, key="k"):
    checkpoints, model = Checkpoints(folder), create_model("nf_resnet_tiny", 3)
    for step in steps:
        with torch.no_grad():
            model.linear.bias.fill_(step)
        checkpoints.save(key, step, model, {"step": step})
    return checkpoints


def latest(checkpoints, key="k"):
    model = create_model("nf_resnet_tiny", 3)
    state = checkpoints.latest(key, model, torch.device("cpu"))
    return None if state is None else (state["step"], model.linear.bias[0].item())


def test_three_checkpoints_are_kept_and_the_last_is_used(tmp_path):
    checkpoints = saved(tmp_path / "here", [1, 2, 3, 4, 5])
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == [f"step-0000000{n}" for n in (3, 4, 5)]
    assert KEPT == 3 and latest(checkpoints) == (5, 5.0)
    assert latest(checkpoints, key="another training") is None
    checkpoints.remove()
    assert not (tmp_path / "here").exists() and latest(checkpoints) is None


@pytest.mark.parametrize("spacing", [1, 2, 6, 7, 13, 33, 500])
def test_a_replay_of_any_step_finds_a_checkpoint_shortly_before_it(spacing):
    """For a divergence at every step: the newest checkpoint at least 20 steps before it, or the beginning."""
    kept = []
    for step in range(1, 2001):
        past = [0, *(s for s in kept if s <= step - 20)]
        assert step < 20 or step - 20 - max(past) < max(2 * REWIND, 3 * spacing)
        if step % spacing == 0:
            kept.append(step)
            kept = [s for s in kept if s not in superseded(kept)]
            assert set(range(step - 2 * spacing, step + 1, spacing)) - {0, -spacing} <= set(kept)
            assert len(kept) <= KEPT + 3


def test_checkpoints_after_until_are_not_read(tmp_path):
    saved(tmp_path, [3, 4, 5])
    early = Checkpoints(tmp_path, until=4)
    assert early.steps() == [4, 3] and latest(early) == (4, 4.0)
    assert Checkpoints(tmp_path, until=2).steps() == [] and Checkpoints(tmp_path).steps() == [5, 4, 3]


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest", "half written"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, damage):
    checkpoints = saved(tmp_path, [1, 2])
    newest = tmp_path / "step-00000002"
    weights = newest / "weights.safetensors"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-10])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "missing":
        (newest / "state.pt").unlink()
    elif damage == "manifest":
        (newest / "manifest.json").write_text(json.dumps({"key": "k"})[:-3])
    else:
        (tmp_path / ".part-1-00000003").mkdir()
        (tmp_path / ".part-1-00000003" / "weights.safetensors").write_bytes(data[:100])
    assert latest(checkpoints) == ((2, 2.0) if damage == "half written" else (1, 1.0))


def test_a_checkpoint_is_due_after_its_steps_or_seconds(tmp_path):
    by_steps = Checkpoints(tmp_path, every_steps=3)
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]
    assert not Checkpoints(tmp_path, every_seconds=1000).due(1) and Checkpoints(tmp_path, every_seconds=0).due(1)


class Counter:
    """A training whose state is one number."""

    def __init__(self):
        self.model, self.device, self.n = create_model("nf_resnet_tiny", 3), torch.device("cpu"), 0

    def state_dict(self):
        return {"n": self.n}

    def load_state_dict(self, state):
        self.n = state["n"]


def test_a_checkpoint_is_written_when_due_or_now_and_restores_the_state(tmp_path):
    counter, checkpoints = Counter(), Checkpoints(tmp_path, every_steps=3)
    resuming = Resuming(checkpoints, "k", counter, World())
    assert resuming.latest() == 0 and counter.n == 0
    for step in range(1, 6):
        counter.n = 10 * step
        resuming.write(step, now=step == 5)
    assert checkpoints.steps() == [5, 3]
    other = Counter()
    assert Resuming(checkpoints, "k", other, World()).latest() == 5 and other.n == 50
    assert torch.equal(other.model.linear.weight, counter.model.linear.weight)
    assert Resuming(checkpoints, "another training", Counter(), World()).latest() == 0


def test_without_checkpoints_a_training_starts_at_step_zero_and_writes_nothing(tmp_path):
    resuming = Resuming(None, "k", Counter(), World())
    assert resuming.latest() == 0
    resuming.write(1, now=True)


def test_only_the_first_process_writes_and_a_different_checkpoint_is_refused(tmp_path, monkeypatch):
    checkpoints, second = Checkpoints(tmp_path, every_steps=1), World(rank=1, size=2)
    Resuming(checkpoints, "k", Counter(), second).write(1)
    assert checkpoints.steps() == []
    monkeypatch.setattr(World, "agree", lambda self, value: 4)
    with pytest.raises(WorkbenchError, match=r"0.*4"):
        Resuming(checkpoints, "k", Counter(), second).latest()


def test_trained_weights_are_evaluated_with_their_preprocessing(root, tmp_path, command):
    import numpy as np
    from PIL import Image

    rng, stripes = np.random.default_rng(0), np.tile([[[40], [40], [200], [200]]], (24, 6, 3))
    for label, image in (("across", stripes), ("down", stripes.transpose(1, 0, 2))):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(30):
            pixels = np.clip(image + rng.integers(-30, 30, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i:02}.png")
    settings = [f"data={tmp_path / 'images'}", "steps=40", "batch_size=16", "base_lr=0.8", "clip=0.1", "device=cpu"]
    arguments = [a for s in [*settings, "model_args={skip_gain: 1.0}"] for a in ("-p", s)]
    file = tmp_path / "mine.safetensors"
    code, output, err = command("train", *arguments, "--save", file)
    assert code == 0 and "complete" in output, err
    code, output, err = command(
        "evaluate", "nf_resnet_tiny", "--weights", file, "--data", tmp_path / "images", "--device", "cpu"
    )
    assert code == 0, err
    assert "100.00%" in output.splitlines()[0]
    assert "reused" in command("train", *arguments)[1]  # without --save the result is known
    assert not list((root / "mlruns").glob("checkpoints/*"))
