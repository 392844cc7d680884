"""Pool. Evidence: real processes, ended in all ways, and placement by hand.

The contract of all executors is in tests/lab/executors.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support.checkout import CHECKOUT

from workbench.pool import Pool, Seat, Task, seats


@pytest.fixture
def pool(monkeypatch):
    """Pool with one seat, which ends with the test."""
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}")
    made = Pool([Seat(None, 1)])
    yield made
    made.stop(at_once=True)


def task(name, function, arguments=None, **kwargs):
    return Task(name, f"support.executor_tasks:{function}", arguments, **kwargs)


def ends(pid, seconds=20):
    """Return whether the process ends in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


# ---- seats


def test_gpus_are_assigned_in_turn_with_equal_shares_of_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys.modules["workbench.pool.seats"], "cores", lambda: 32)
    assert seats(4, ["0", "1", "2", "3"]) == [Seat(gpu, 8) for gpu in "0123"]
    assert [seat.gpu for seat in seats(3, ["5", "GPU-abc"])] == ["5", "GPU-abc", "5"]
    assert seats(64) == [Seat(None, 1)] * 64
    variables = seats(2, ["7"])[1].environment
    assert variables == {"OMP_NUM_THREADS": "16", "MKL_NUM_THREADS": "16", "CUDA_VISIBLE_DEVICES": "7"}
    assert Seat(None, 1).environment["CUDA_VISIBLE_DEVICES"] == ""  # the worker sees no GPU


def test_the_argument_threads_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [seats(2)[0].threads, seats(2, threads=5)[0].threads] == [3, 5]


# ---- workers


def test_a_worker_runs_tasks_until_one_raises(pool):
    """After an error, the next task gets a new worker, because the error may leave the GPU unusable."""
    values = []
    for function in ("pid", "pid", "fail", "pid"):
        pool.submit(task(function, function, "text"))
        values.append(pool.wait().value)
    assert values[0] == values[1] and values[2] is None and values[3] not in (None, values[0])


def test_interrupted_tasks_report_how_they_ended(pool, tmp_path):
    pids = []
    pool.submit(task("runs", "until_stopped", str(tmp_path / "saved"), on_message=pids.append))
    pool.submit(task("waits", "pid"))
    assert pool.wait(until=lambda: bool(pids)) is None
    pool.interrupt()
    outcome = pool.wait()
    assert (outcome.task.name, outcome.stopped) == ("runs", True) and (tmp_path / "saved").exists()
    assert pool.wait() is None  # the waiting task never starts


def test_a_task_whose_worker_dies_during_an_interrupt_does_not_run_again(pool):
    pids = []
    pool.submit(task("runs", "with_child", on_message=pids.append))
    pool.wait(until=lambda: bool(pids))
    os.kill(pids[0][0], signal.SIGSTOP)  # it cannot answer
    pool.interrupt()
    os.kill(pids[0][0], signal.SIGKILL)
    deadline = time.monotonic() + 20
    outcome = pool.wait(until=lambda: len(pids) > 1 or time.monotonic() > deadline)
    assert outcome.died and len(pids) == 1


def test_on_retry_gets_the_task_and_the_cause(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}")
    retried = []
    pool = Pool([Seat(None, 1)], on_retry=lambda task, cause: retried.append((task.name, cause)))
    pool.submit(task("a", "die", (str(tmp_path), 1)))
    assert pool.wait().value == 1
    pool.stop(at_once=True)
    ((name, cause),) = retried
    assert name == "a" and "signal 9" in cause


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_children_of_a_worker_end_with_it(victim, tmp_path):
    """The worker, or the process with the pool, is killed by kill -9."""
    script = (
        "from workbench.pool import Pool, Seat, Task\n"
        "pool = Pool([Seat(None, 1)])\n"
        "show = lambda pids: print(*pids, flush=True)\n"
        "pool.submit(Task('a', 'support.executor_tasks:with_child', None, show, retries=0))\n"
        "pool.wait()\n"
        "input()"
    )
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        worker, child = map(int, parent.stdout.readline().split())
        os.kill(worker if victim == "worker" else parent.pid, signal.SIGKILL)
        assert ends(worker) and ends(child)
    finally:
        for pid in (parent.pid, worker, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        parent.communicate()


def test_ctrl_c_does_not_reach_the_workers(pool):
    pids = []
    pool.submit(task("runs", "with_child", on_message=pids.append))
    pool.wait(until=lambda: bool(pids))
    assert os.getsid(pids[0][0]) == pids[0][0] != os.getsid(0)
