"""Detached runs in processes of their own."""

import os
import subprocess
import sys
import time

from support.checkout import CHECKOUT
from workbench.training import TrainConfig

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
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **dict(env)}
    command = [sys.executable, "-m", "workbench.training", str(plan), "--out", str(out), "--device", "cpu", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(condition, process=None, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
