"""Detached runs in separate processes."""

import contextlib
import os
import subprocess
import sys
import time

import psutil

from support.checkout import CHECKOUT
from workbench.training import TrainConfig

MARK = "WORKBENCH_TEST_OUT"  # in the environment of all processes of a run

TINY = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0, "dropout": 0.1},
    batch_size=8,
    base_lr=1.6,
    steps=80,
    eval_every=20,
    telemetry_every=40,
)


def plain(result):
    drop = ("seconds", "device_seconds", "images_per_second")
    rows = [{k: v for k, v in row.items() if k not in drop} for row in result.history]
    return rows, {k: v for k, v in result.metrics.items() if k not in drop}, result.outcome, result.cause, result.key


def start(plan, out, *options, env=()):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), MARK: str(out), **dict(env)}
    command = [sys.executable, "-m", "workbench.training", str(plan), "--out", str(out), "--device", "cpu", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def checkpointed_steps(out):
    """The steps of all checkpoints of unfinished trainings."""
    return [int(manifest.parent.name[5:]) for manifest in out.glob("checkpoints/*/step-*/manifest.json")]


def family(pid):
    """The workers of the pool of process `pid`."""
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children() if is_worker(child)]
    return []


def is_worker(process):
    with contextlib.suppress(psutil.Error):
        return "workbench.pool.worker" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    return False


def processes_of(out):
    """The workers of the run that `start` made for this folder. They live a little longer than its first process."""
    return [p.pid for p in psutil.process_iter() if is_worker(p) and p.environ().get(MARK) == str(out)]
