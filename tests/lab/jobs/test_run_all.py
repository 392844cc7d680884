"""Trainings in the store, on every executor.

Evidence: equal bits from every executor, processes killed during training, the runs and points in the store, and a
store that fails at the end.
"""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import psutil
import pytest
from support.mlflow_view import client
from support.points import points_twice

from workbench.errors import WorkbenchError
from workbench.lab import Arm, Session, Store, run_all, search
from workbench.lab.executors import channel
from workbench.lab.jobs.job import Job
from workbench.lab.jobs.run_all import Progress, run_training, trained
from workbench.lab.store import client as store_module
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, worker_task
from workbench.training.distributed import World

BASE = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0},
    batch_size=16,
    steps=6,
    train_size=64,
    eval_every=2,
    progress=False,
    device="cpu",
)
SPACE = {"clip": {"low": 0.002, "high": 0.64, "log": True}, "base_lr": {"low": 0.1, "high": 20.0, "log": True}}
NUMBERS = ["seed", "val_acc", "train_loss", "val_loss", "outcome"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Use as many threads as a worker does, because the order of sums changes bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def session():
    store = Store()
    return Session(
        store, "mine", "full", store.open_notebook("mine", "mine.ipynb", {}, "full", "mine", {}), by_hand=False
    )


def arms(n=4):
    return [Arm(f"arm {seed}", BASE.replace(seed=seed)) for seed in range(n)]


EXECUTORS = ["processes:2,threads=1", pytest.param("ray:2,threads=1", marks=pytest.mark.slow)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_all_executors_give_the_same_rows_in_the_same_order(another_root, executor):
    if executor.startswith("ray"):
        pytest.importorskip("ray")
    another_root()
    inline = run_all(arms(), session())
    another_root()
    elsewhere = run_all(arms(), session(), executor=executor)
    assert elsewhere[["arm", *NUMBERS]].equals(inline[["arm", *NUMBERS]])
    runs = Store().search("trainings", "full")
    assert sorted(run.status for run in runs) == ["FINISHED"] * 4
    assert not points_twice(Store(), runs)


def kill_once(row, killed):
    """Kill the worker of this training at its second row, once."""
    if row["step"] == 4 and not killed:
        victims = [pid for pid in psutil.pids() if is_worker(pid)]
        killed += victims[:1]
        os.kill(killed[0], signal.SIGKILL)
    return False


def is_worker(pid):
    try:
        process = psutil.Process(pid)
        return "workbench.pool.worker" in process.cmdline() and process.ppid() == os.getpid()
    except psutil.NoSuchProcess:
        return False


def test_a_killed_worker_changes_no_result(another_root):
    another_root()
    undisturbed = run_all(arms(3), session())
    another_root()
    own_session, killed, finished = session(), [], []
    jobs = [Job(arm, "screen", watch=lambda row: kill_once(row, killed)) for arm in arms(3)]
    with Progress("trainings", 3) as progress:
        for done in trained(jobs, own_session, executor="processes:1,threads=1", progress=progress):
            finished.append(done)
    assert len(killed) == 1
    assert [done.error for done in finished] == [None] * 3
    assert [done.result.metrics["train_loss"] for done in finished] == undisturbed.train_loss.tolist()
    runs = own_session.store.search("trainings", "full")
    assert [run.status for run in runs] == ["FINISHED"] * 3
    assert not points_twice(own_session.store, runs)


def test_progress_names_the_arm_of_each_training(root, monkeypatch):
    emitted = []
    monkeypatch.setattr(channel, "send", lambda **message: emitted.append((message["kind"], message["name"])))
    run_all([Arm("one 3x3 conv", BASE), Arm(BASE.model, BASE.replace(seed=1))], session())
    assert [name for kind, name in emitted if kind == "training"] == [
        "one 3x3 conv, nf_resnet_tiny B16 lr0.00625 c0.01 s0",
        "nf_resnet_tiny B16 lr0.00625 c0.01 s1",
    ]
    assert {name for kind, name in emitted if kind == "step"} == {name for kind, name in emitted if kind == "training"}


def test_a_training_listed_twice_runs_once(root):
    table = run_all([arms()[0], arms()[1], arms()[0]], session(), executor="processes:2,threads=1")
    assert table.run_id[0] == table.run_id[2] != table.run_id[1]
    assert len(Store().search("trainings", "full")) == 2


def _train_arms(root, queue):
    os.environ["WORKBENCH_ROOT"] = str(root)
    import torch

    torch.set_num_threads(1)
    queue.put(run_all(arms(2), session()).run_id.tolist())


def test_two_processes_with_the_same_trainings_run_each_once(root):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_train_arms, args=(root, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    run_ids = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert run_ids[0] == run_ids[1]
    assert len(Store().search("trainings", "full")) == 2


def test_a_result_is_not_lost_when_the_store_fails_at_the_end(root, monkeypatch):
    own_session, trained_again = session(), []
    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish_training", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(RuntimeError, match=r"No space left.*result is kept"):
            run_all(arms(1), own_session)
    assert [run.status for run in own_session.store.search("trainings", "full")] == ["RUNNING"]
    original = worker_task.train
    monkeypatch.setattr(worker_task, "train", lambda *a, **k: trained_again.append(1) or original(*a, **k))
    table = run_all(arms(1), session())
    assert not trained_again and table.outcome[0] in FINISHED
    finished = [r for r in own_session.store.search("trainings", "full") if r.status == "FINISHED"]
    assert len(finished) == 1 and not points_twice(own_session.store, finished)
    assert [p.step for p in client(own_session.store).get_metric_history(finished[0].id, "val_acc")] == [2, 4, 6]
    assert not list((root / "mlruns" / "checkpoints").iterdir())


def test_rows_wait_while_the_store_is_unreachable(root, monkeypatch):
    own_session, original, calls = session(), Store.log_rows, []

    def unreachable_at_first(self, run_id, rows):
        calls.append(len(rows))
        if len(calls) <= 2:
            raise store_module.MlflowException("the server is unreachable")
        original(self, run_id, rows)

    monkeypatch.setattr(Store, "log_rows", unreachable_at_first)
    monkeypatch.setattr("workbench.lab.jobs.job_run.FLUSH_EVERY", 0.0)
    table = run_all(arms(1), own_session)
    assert calls[:3] == [1, 2, 3]
    history = client(own_session.store).get_metric_history(table.run_id[0], "val_loss")
    assert [point.step for point in history] == [2, 4, 6]


def test_an_interruption_closes_the_runs_and_the_next_start_continues(root):
    own_session, rows = session(), []

    def interrupt(row):
        rows.append(row["step"])
        if len(rows) == 2:
            raise KeyboardInterrupt
        return False

    jobs = [Job(arm, "screen", watch=interrupt) for arm in arms(2)]
    with pytest.raises(KeyboardInterrupt), Progress("trainings", 2) as progress:
        list(trained(jobs, own_session, executor="processes:2,threads=1", progress=progress))
    assert {run.status for run in own_session.store.search("trainings", "full")} == {"KILLED"}
    assert run_all(arms(2), own_session).outcome.isin(FINISHED).all()


def test_a_training_that_breaks_keeps_its_traceback_and_the_others_go_on(root, monkeypatch):
    original = worker_task.train

    def out_of_memory(config, *args, **kwargs):
        if config.seed == 1:
            raise MemoryError("12 GB")
        return original(config, *args, **kwargs)

    monkeypatch.setattr(worker_task, "train", out_of_memory)
    with pytest.raises(RuntimeError, match=r"1 of 3 trainings broke.*\n.* s1: MemoryError: 12 GB"):
        run_all(arms(3), session())
    runs = {run.status: run for run in Store().search("trainings", "full")}
    assert set(runs) == {"FINISHED", "FAILED"}
    failed = runs["FAILED"].id
    assert "MemoryError" in Store().read_text(failed, "error.txt")
    with pytest.raises(RuntimeError, match=r"MemoryError.*\(test_run_all.py, line \d+\).*error.txt") as broken:
        run_training(arms(3)[1].config, session(), role="screen", arm="a")
    assert "in out_of_memory" in str(broken.value.__cause__)  # so that a saved traceback has it


def test_a_training_that_breaks_by_a_mistake_of_the_user_is_refused(root, monkeypatch):
    def refuse(*args, **kwargs):
        raise WorkbenchError("no such image")

    monkeypatch.setattr(worker_task, "train", refuse)
    with pytest.raises(WorkbenchError, match=r"no such image"):
        run_training(arms(1)[0].config, session(), role="screen", arm="a")


def test_a_finished_training_without_its_result_file_is_trained_again(root):
    (first,) = run_all(arms(1), session()).run_id
    store = Store()
    result = Path(store.get(first).files_uri.removeprefix("file://")) / "result.json"
    result.unlink()
    with pytest.raises(WorkbenchError, match=r"result\.json.*doctor"):
        store.read_text(first, "result.json")
    (again,) = run_all(arms(1), session()).run_id
    assert again != first


def test_a_parallel_search_repeats_no_point_and_misses_no_slot(root):
    trials = search(
        lambda p: BASE.replace(**p), SPACE, trials=7, session=session(), executor="processes:2,threads=1"
    ).trials
    assert len(trials) == 7 and not trials.duplicated(["clip", "base_lr"]).any()
    assert trials.trial.tolist() == list(range(7))


@pytest.mark.slow
def test_killed_trials_of_a_parallel_search_free_slots_and_parameters(another_root):
    def objective(p):
        return BASE.replace(**p)

    another_root()
    startup = search(objective, SPACE, trials=3, session=session()).trials  # drawn before the sampler has results
    another_root()
    own_session, points = session(), []

    def interrupting(p):
        points.append((p["clip"], p["base_lr"]))
        if len(points) == 4:  # the corner of the space, then trials: two of them run
            raise KeyboardInterrupt
        return objective(p)

    with pytest.raises(KeyboardInterrupt):
        search(interrupting, SPACE, trials=3, session=own_session, executor="processes:2,threads=1")
    trials = search(objective, SPACE, trials=3, session=own_session, executor="processes:2,threads=1").trials
    columns = ["clip", "base_lr", "val_acc"]
    assert trials[columns].equals(startup[columns])


def test_a_kill_between_freeing_a_slot_and_failing_its_trial_doubles_no_slot(root, monkeypatch):
    import optuna

    own_session = session()

    def objective(p):
        return BASE.replace(**p)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker_task, "train", killed)
        search(objective, SPACE, trials=2, session=own_session)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.Study, "tell", killed)  # the first call after the parameters are enqueued
        search(objective, SPACE, trials=2, session=own_session)
    trials = search(objective, SPACE, trials=2, session=own_session).trials
    assert len(trials) == 2 and not trials.duplicated(["clip", "base_lr"]).any()


def test_trials_that_break_are_reported_and_tried_again_by_the_next_start(root, monkeypatch):
    original, broken = worker_task.train, []

    def breaks_once(*args, **kwargs):
        if not broken:
            broken.append(1)
            raise MemoryError("12 GB")
        return original(*args, **kwargs)

    monkeypatch.setattr(worker_task, "train", breaks_once)
    own_session = session()
    with pytest.raises(RuntimeError, match=r"1 trials broke.*\n.*MemoryError: 12 GB"):
        search(lambda p: BASE.replace(**p), SPACE, trials=3, session=own_session)
    trials = search(lambda p: BASE.replace(**p), SPACE, trials=3, session=own_session).trials
    assert len(trials) == 3 and trials.outcome.isin(FINISHED).all()


def test_inline_and_worker_trainings_have_the_same_key(root):
    first = run_all(arms(1), session())
    assert run_all(arms(1), session(), executor="processes:1").run_id[0] == first.run_id[0]
    assert json.loads(Store().read_text(first.run_id[0], "result.json"))["config"]["device"] == "cpu"


def test_a_kept_result_is_used_by_a_single_process_but_not_under_torchrun(tmp_path, monkeypatch):
    arguments = {"config": BASE.replace(steps=2).to_dict(), "folder": str(tmp_path), "save": None}
    first = worker_task.train_task(arguments, lambda message: False, lambda: False)
    monkeypatch.setattr(worker_task, "train", lambda *args, **kwargs: pytest.fail("trained"))
    assert worker_task.train_task(arguments, lambda message: False, lambda: False) == first
    monkeypatch.setattr(worker_task.World, "from_environment", classmethod(lambda cls: World(size=2)))
    with pytest.raises(pytest.fail.Exception, match="trained"):
        worker_task.train_task(arguments, lambda message: False, lambda: False)
