"""Executors. All three keep one contract: inline, processes of this machine, and Ray.

Evidence: what the submitting process sees, with real workers that are killed. GPUs are pretended on machines without
GPUs. No two tasks may have the same one.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from support.checkout import CHECKOUT

from workbench.errors import WorkbenchError
from workbench.lab.executors import Choice, Task
from workbench.lab.executors.processes import WAITS

WITHOUT_RAY = importlib.util.find_spec("ray") is None
RAY = pytest.param(
    "ray", marks=[pytest.mark.slow, pytest.mark.skipif(WITHOUT_RAY, reason="ray is not installed: pip install .[ray]")]
)
ALL = ["inline", "processes", RAY]
OUTSIDE = ["processes", RAY]  # their workers are other processes


@pytest.fixture(scope="module", autouse=True)
def ray_ends_with_the_module():
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def make(root, monkeypatch):
    """Make executors that end with the test."""
    path = f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}"
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("WORKBENCH_GPUS", "2")
    executors = []

    def make(kind, workers=2, **resources):
        executors.append(Choice(kind, None if kind == "inline" else workers, **resources).make())
        return executors[-1]

    yield make
    for executor in executors:
        executor.stop(at_once=True)


def task(name, function, arguments, **kwargs):
    return Task(name, f"support.executor_tasks:{function}", arguments, **kwargs)


def all_outcomes(executor, tasks):
    """Submit the tasks as there is room, and return their outcomes by name."""
    tasks, outcomes = list(tasks), {}
    while True:
        while tasks and executor.has_room():
            executor.submit(tasks.pop(0))
        outcome = executor.wait()
        if outcome is None:
            return outcomes
        outcomes[outcome.task.name] = outcome


@pytest.mark.parametrize("kind", ALL)
def test_each_task_gets_its_result(make, kind):
    outcomes = all_outcomes(make(kind), [task(str(i), "double", i) for i in range(7)])
    assert {name: outcome.value for name, outcome in outcomes.items()} == {str(i): 2 * i for i in range(7)}


@pytest.mark.parametrize("kind", ALL)
def test_one_worker_runs_tasks_in_order(make, kind):
    began = []
    tasks = [task(str(i), "ask", [i], on_message=began.append) for i in range(4)]
    outcomes = all_outcomes(make(kind, workers=1), tasks)
    assert began == [0, 1, 2, 3] and list(outcomes) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("kind", ALL)
def test_each_answer_goes_to_the_task_that_asked(make, kind):
    tasks = [task(str(i), "ask", ["a", "b", "c"], on_message=lambda word, i=i: f"{word}{i}") for i in range(3)]
    outcomes = all_outcomes(make(kind), tasks)
    assert [outcomes[str(i)].value for i in range(3)] == [[f"a{i}", f"b{i}", f"c{i}"] for i in range(3)]


@pytest.mark.parametrize("kind", ALL)
def test_an_exception_becomes_an_error_and_the_other_tasks_go_on(make, kind):
    outcomes = all_outcomes(
        make(kind), [task("good", "double", 1), task("bad", "fail", "no room"), task("g", "double", 2)]
    )
    assert (outcomes["good"].value, outcomes["g"].value) == (2, 4)
    assert outcomes["bad"].error == "ValueError: no room" and not outcomes["bad"].died
    assert "executor_tasks.py" in outcomes["bad"].details


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_killed_workers_task_is_retried_and_the_other_tasks_go_on(make, kind, tmp_path):
    for name in ("once", "always"):
        (tmp_path / name).mkdir()
    tasks = [
        task("once", "die", (str(tmp_path / "once"), 1)),
        task("always", "die", (str(tmp_path / "always"), 99)),
        *[task(str(i), "double", i) for i in range(3)],
    ]
    outcomes = all_outcomes(make(kind), tasks)
    assert outcomes["once"].value == 1
    assert [outcomes[str(i)].value for i in range(3)] == [0, 2, 4]
    assert outcomes["always"].died and outcomes["always"].error
    assert len(list((tmp_path / "always").iterdir())) == 3  # one try and two retries


def test_the_error_names_the_signal_that_ended_the_worker(make, tmp_path):
    (outcome,) = all_outcomes(make("processes"), [task("t", "die", (str(tmp_path), 99), retries=0)]).values()
    assert "ended by signal 9" in outcome.error


def interrupted_after(messages, heard):
    """Return an `on_message` that raises KeyboardInterrupt at the given number of messages."""

    def on_message(message):
        heard.append(message)
        if len(heard) == messages:
            raise KeyboardInterrupt

    return on_message


@pytest.mark.parametrize("kind", OUTSIDE)
def test_stopped_tasks_save_and_leave_no_process(make, kind, tmp_path):
    executor, pids = make(kind), []
    for name in "ab":
        executor.submit(task(name, "until_stopped", str(tmp_path / name), on_message=interrupted_after(2, pids)))
    with pytest.raises(KeyboardInterrupt):
        executor.wait()
    executor.stop()
    assert sorted(f.name for f in tmp_path.iterdir() if f.is_file()) == ["a", "b"]
    if kind == "processes":
        assert not any(psutil.pid_exists(pid) for pid in pids)
    assert executor.wait() is None


def test_stop_at_once_does_not_wait_for_tasks(make, tmp_path):
    executor, pids = make("processes"), []
    executor.submit(task("a", "until_stopped", str(tmp_path / "a"), on_message=interrupted_after(1, pids)))
    with pytest.raises(KeyboardInterrupt):
        executor.wait()
    executor.stop(at_once=True)
    assert not psutil.pid_exists(pids[0]) and not (tmp_path / "a").exists()


@pytest.fixture
def default_sigterm():
    """Python's default handler of SIGTERM, because Ray sets another one."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_stops_the_inline_task(make, tmp_path, default_sigterm):
    executor = make("inline")
    executor.submit(task("a", "until_stopped", str(tmp_path / "a")))
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        executor.wait()
    assert (tmp_path / "a").exists()


@pytest.mark.parametrize("kind", ALL)
def test_a_tasks_environment_does_not_reach_other_tasks(make, kind):
    names = ["MINE", "WORKBENCH_ROOT"]
    tasks = [
        task("with", "environment", names, environment={"MINE": "1"}),
        task("without", "environment", names),
    ]
    executor = make(kind, workers=1)
    outcomes = all_outcomes(executor, tasks)
    assert (outcomes["with"].value["MINE"], outcomes["without"].value["MINE"]) == ("1", None)
    assert outcomes["with"].value["WORKBENCH_ROOT"] == os.environ["WORKBENCH_ROOT"]


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_task_has_the_threads_of_its_resources(make, kind):
    (outcome,) = all_outcomes(
        make(kind, workers=1, threads=1, gpus=0.0), [task("t", "environment", ["OMP_NUM_THREADS"])]
    ).values()
    assert outcome.value["OMP_NUM_THREADS"] == "1" and outcome.value["threads"] == 1


def test_a_task_without_gpus_sees_no_gpu(make):
    (outcome,) = all_outcomes(
        make("processes", gpus=0.0), [task("t", "environment", ["CUDA_VISIBLE_DEVICES"])]
    ).values()
    assert outcome.value["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize(("share", "workers", "together"), [(None, 2, 1), (0.5, 4, 2)])
def test_no_gpu_runs_more_tasks_than_its_share_allows(make, kind, share, workers, together):
    if kind == "ray" and workers > psutil.cpu_count():
        pytest.skip("Ray places no more tasks than there are cores")
    busy, most = {}, {}

    def heard(message):
        event, gpu = message
        busy[gpu] = busy.get(gpu, 0) + (1 if event == "begins" else -1)
        most[gpu] = max(most.get(gpu, 0), busy[gpu])

    tasks = [task(str(i), "occupy", 0.4, on_message=heard) for i in range(workers + 2)]
    outcomes = all_outcomes(make(kind, workers=workers, gpus=share), tasks)
    assert {outcome.value for outcome in outcomes.values()} == {"0", "1"}
    assert max(most.values()) == together


def test_all_executors_of_a_store_share_the_seats_of_a_machine(make):
    first, second, busy, most = make("processes"), make("processes"), [], []

    def heard(message):
        busy.append(1) if message[0] == "begins" else busy.pop()
        most.append(len(busy))

    for executor in (first, second):
        for i in range(2):
            executor.submit(task(str(i), "occupy", 0.5, on_message=heard))
    threads = [threading.Thread(target=all_outcomes, args=(executor, [])) for executor in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(most) == 8 and max(most) == 2


def test_an_executor_that_waits_for_a_seat_says_so_once(make, capfd):
    first, second = make("processes", workers=1), make("processes", workers=1)
    first.submit(task("first", "occupy", 1.5))
    second.submit(task("second", "occupy", 0.1))
    waiting = threading.Thread(target=all_outcomes, args=(second, []))
    waiting.start()
    all_outcomes(first, [])
    waiting.join(timeout=60)
    assert capfd.readouterr().err.count(WAITS) == 1


def test_workers_save_and_end_when_the_submitting_process_is_killed(root, tmp_path):
    script = (
        "from workbench.lab.executors import Choice, Task\n"
        "e = Choice('processes', 1, gpus=0.0).make()\n"
        "show = lambda pid: print(pid, flush=True)\n"
        f"e.submit(Task('a', 'support.executor_tasks:until_stopped', {str(tmp_path / 'a')!r}, show))\n"
        "e.wait()"
    )
    path = f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'tests'}"
    submitter = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    worker = psutil.Process(int(submitter.stdout.readline()))
    submitter.kill()
    submitter.wait()
    worker.wait(timeout=20)
    assert (tmp_path / "a").exists()  # the task saved its file


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("inline", Choice()),
        ("processes:4", Choice("processes", 4)),
        ("ray:8,gpus=0.5,threads=2", Choice("ray", 8, 0.5, 2)),
    ],
)
def test_a_choice_can_be_parsed_from_its_text(text, choice):
    assert Choice.parse(text) == choice
    assert Choice.parse(str(choice)) == choice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("proceses:2", ["'proceses'", "'processes'"]),
        ("processes:x", ["processes:x", "ray:8,gpus=0.5,threads=2", "WORKBENCH_EXECUTOR"]),
        ("processes:0", ["`workers`", "0"]),
        ("processes:2,gpu=1", ["'gpu'", "'gpus'"]),
        ("processes:2,gpus=2", ["`gpus`", "2.0", "torchrun"]),
        ("inline:2", ["inline", "`workers` 2", "--executor processes"]),
        ("inline,threads=2", ["inline", "threads=2", "--executor processes"]),
    ],
)
def test_an_invalid_choice_is_refused(text, words):
    with pytest.raises(WorkbenchError) as error:
        Choice.parse(text)
    assert all(word in str(error.value) for word in words)


def test_several_workers_or_gpus_mean_processes(monkeypatch):
    monkeypatch.delenv("WORKBENCH_EXECUTOR", raising=False)
    monkeypatch.setenv("WORKBENCH_GPUS", "0")
    assert Choice.of(None, None, None, None).kind == "inline"
    assert Choice.of(None, 3, None, None) == Choice("processes", 3)
    assert Choice.of(None, None, None, 2) == Choice("processes", threads=2)  # not ignored
    monkeypatch.setenv("WORKBENCH_GPUS", "4")
    assert Choice.of(None, None, None, None).kind == "processes"
    assert Choice("processes").count == 4 and Choice("processes", gpus=0.5).count == 8
    monkeypatch.setenv("WORKBENCH_EXECUTOR", "ray:8")
    assert Choice.of(None, 2, None, None) == Choice("ray", 2)
    monkeypatch.setenv("WORKBENCH_EXECUTOR", "processes:3")
    assert Choice.of(None, None, None, None).workers == 3


def test_an_invalid_number_of_pretended_gpus_is_refused(monkeypatch):
    monkeypatch.setenv("WORKBENCH_GPUS", "two")
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_GPUS.*two"):
        Choice.of(None, None, None, None)


def test_options_override_the_executor_of_the_environment(monkeypatch):
    monkeypatch.setenv("WORKBENCH_EXECUTOR", "processes:2,threads=3")
    assert str(Choice.of(None, None, 0.5, None)) == "processes:2,gpus=0.5,threads=3"
    with pytest.raises(WorkbenchError, match="gpus"):
        Choice.of(None, None, 3.0, None)
