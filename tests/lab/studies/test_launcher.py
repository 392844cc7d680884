"""Whatever ends a notebook, its run and its trainings say so, and starting again does only what is missing.

Evidence: real kernels, killed; the store inspected. A small notebook of four trainings stands for the big ones.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from support.checkout import CHECKOUT
from support.notebooks import notebook

from workbench.errors import WorkbenchError
from workbench.lab import Store, Study, run_study
from workbench.lab.executors.lifetime import whoami
from workbench.lab.studies.executions import execution_key, plan
from workbench.lab.studies.spec import distinct

CELLS = (
    "from workbench.lab import open_session, run_all\nfrom workbench.lab.statistics.intervals import t_interval\nfrom workbench.lab.statistics.verdict import Effect, Verdict\n"
    "from workbench.training import TrainConfig\nsession = open_session('small', globals())",
    "base = TrainConfig(steps=steps, batch_size=16, train_size=64, eval_every=1, device='cpu')\n"
    "table = session.table(run_all([base.replace(seed=s) for s in range(4)], session))",
    "session.verdict(Verdict(None, Effect('accuracy', t_interval(table.val_acc)), 'done', table[['seed', 'val_acc']]))",
)


@pytest.fixture
def small(root):
    """A root whose only study trains four tiny nets."""
    for name in ("notebooks", "studies"):
        (root / name).unlink()
        (root / name).mkdir()
    notebook(root / "notebooks" / "small.ipynb", "steps: int = 12  # of each training", *CELLS)
    (root / "studies" / "small.yaml").write_text("question: Does it run?\nnotebook: small.ipynb\n")
    return root


def statuses(store):
    return [r.status for r in store.search("studies", "full")], sorted(
        t.status for t in store.search("trainings", "full")
    )


def kernels():
    return [p for p in psutil.Process().children(recursive=True) if any("ipykernel" in a for a in p.cmdline())]


def papermills():
    return [p for p in psutil.Process().children(recursive=True) if "workbench.lab.studies.notebook" in p.cmdline()]


def after_two_trainings(action):
    """A listener that acts once, when two trainings are done and the third has begun."""
    done = threading.Event()

    def listener(event):
        if event["kind"] == "step" and event["done"] == 2 and not done.is_set():
            done.set()
            action()

    return listener


@pytest.mark.parametrize(
    ("victims", "sig", "status", "cause"),
    [
        pytest.param(kernels, signal.SIGKILL, "FAILED", "kernel was killed", id="kernel -9"),
        pytest.param(papermills, signal.SIGKILL, "KILLED", "by signal 9", id="papermill -9", marks=pytest.mark.slow),
        pytest.param(papermills, signal.SIGTERM, "KILLED", "by signal 15", id="papermill -15", marks=pytest.mark.slow),
    ],
)
def test_a_killed_study_says_so_and_goes_on_where_it_stopped(small, victims, sig, status, cause):
    store = Store()
    run_study("small", store=store, listener=after_two_trainings(lambda: [os.kill(p.pid, sig) for p in victims()]))
    studies, trainings = statuses(store)
    assert studies == [status]
    assert cause in store.search("studies", "full")[0].tags["cause"]
    assert trainings == ["FINISHED", "FINISHED", "KILLED"]
    time.sleep(0.5)
    assert not kernels() and not papermills()

    events = []
    (run_id,) = run_study("small", store=store, listener=events.append)
    assert store.status(run_id) == "FINISHED"
    assert [e["reused"] for e in events if e["kind"] == "training"] == [True, True, False, False]


def test_a_notebook_that_raises_is_failed_with_its_error_and_keeps_its_report(small):
    notebook(
        small / "notebooks" / "small.ipynb", "steps: int = 1  # s", CELLS[0], "raise ValueError('value, rule and cure')"
    )
    store, events = Store(), []
    (run_id,) = run_study("small", store=store, listener=events.append)
    run = store.get(run_id)
    assert run.status == "FAILED"
    assert "ValueError: value, rule and cure" in run.tags["cause"]
    assert {"notebook/run.ipynb", "notebook/run.html"} <= set(store.artifacts(run_id))
    assert [e["kind"] for e in events][-2:] == ["broken", "ended"]


@pytest.mark.parametrize(
    ("sig", "expected"),
    [
        pytest.param(signal.SIGINT, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, id="-15", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, None, id="-9", marks=pytest.mark.slow),
    ],
)
def test_an_ended_launcher_leaves_no_kernel_and_no_running_run(small, sig, expected):
    environment = os.environ | {"WORKBENCH_ROOT": str(small)}
    launcher = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "study", "small", "-p", "steps=3000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=CHECKOUT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    store = Store()
    deadline = time.monotonic() + 60
    while not store.search("trainings", "full") and time.monotonic() < deadline:
        time.sleep(0.3)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert family
    launcher.send_signal(sig)
    _, err = launcher.communicate(timeout=30)
    psutil.wait_procs(family, timeout=15)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "an orphan goes on"
    if sig == signal.SIGKILL:
        store.close_orphans()  # what every `study` does first, and `doctor --fix`
    else:
        assert launcher.returncode == expected
        assert ("interrupted" in err) == (sig == signal.SIGINT)
    studies, trainings = statuses(store)
    assert studies == ["KILLED"]
    assert trainings == ["KILLED"]


def test_a_finished_execution_is_reused_and_a_changed_notebook_runs_again(small):
    store = Store()
    first = run_study("small", store=store, overrides={"steps": "2"})
    assert run_study("small", store=store, overrides={"steps": "2"}) == first

    def planned(steps="2", **kwargs):
        (execution,) = plan([Study.load("small")], store, quick=False, overrides={"steps": steps}, **kwargs)
        return execution.reuse

    assert planned() == first[0]
    assert planned(rerun="all") is None
    assert planned(steps="3") is None
    file = small / "notebooks" / "small.ipynb"
    changed = json.loads(file.read_text())
    changed["cells"][-1]["source"] += "\nprint('more')"
    file.write_text(json.dumps(changed))
    assert planned() is None


def test_the_plan_says_why(small):
    """Runs as launchers leave them, without their kernels."""
    store, study = Store(), Study.load("small")

    def left(status, cause=None, **changed):
        key = execution_key(study, {"steps": 12}) | changed
        tags = {f"key.{part}": value for part, value in key.items()} | ({"cause": cause} if cause else {})
        run_id = store.open_notebook("small", "small.ipynb", {}, "full", "small", tags)
        if status != "RUNNING":
            store.close(run_id, status)
        return run_id

    def planned(**kwargs):
        (execution,) = plan([study], store, quick=False, **kwargs)
        return execution.action, execution.state, execution.why

    assert planned() == ("run", "new", "never run")
    run_id = left("FAILED", "MemoryError")
    assert planned() == ("run", "failed", f"run {run_id[:8]}: MemoryError")
    assert planned(rerun="stale")[0] == "leave" and planned(rerun="failed")[0] == "run"
    run_id = left("FINISHED", code="other", data="other")
    assert planned() == ("run", "stale", f"code and data changed since run {run_id[:8]}")
    run_id = left("KILLED", "interrupted")
    assert planned() == ("run", "interrupted", f"run {run_id[:8]}")
    run_id = left("RUNNING")
    assert planned() == ("leave", "running", f"run {run_id[:8]}, in another process")
    store.set_tags(run_id, process="/".join([*whoami().split("/")[:-2], "999999", "1"]))  # one that is no more
    assert planned() == ("run", "interrupted", f"run {run_id[:8]}: its process ended before it did")
    left("FINISHED")
    assert planned()[:2] == ("reuse", "finished") and planned(rerun="all")[0] == "run"
    with pytest.raises(WorkbenchError, match="unknown choice for --rerun 'stal': did you mean 'stale'"):
        planned(rerun="stal")


def test_a_run_by_hand_is_no_estimate(small):
    (small / "studies" / "small.yaml").write_text("question: q\nnotebook: small.ipynb\nminutes: {full: 2}\n")
    study, store = Study.load("small"), Store()

    def estimate_after(tags):
        store.close(store.open_notebook("small", "small.ipynb", {}, "full", "small", tags), "FINISHED")
        return plan([study], store, quick=False)[0].seconds

    assert estimate_after({"by": "hand"}) == 120.0
    assert estimate_after({}) < 60


def test_a_matrix_expands_into_executions(small):
    (small / "studies" / "small.yaml").write_text(
        "question: q\nnotebook: small.ipynb\nmatrix: {steps: [1, 2]}\nquick: {steps: 1}\nminutes: {full: 2}\n"
    )
    study, store = Study.load("small"), Store()
    planned = plan([study], store, quick=False)
    assert [(e.name, e.parameters["steps"], e.seconds) for e in planned] == [
        ("small steps=1", 1, 120.0),
        ("small steps=2", 2, 120.0),
    ]
    assert [e.parameters["steps"] for e in plan([study], store, quick=True)] == [1]  # quick makes both points one
    assert [e.parameters["steps"] for e in plan([study], store, quick=False, overrides={"steps": "7"})] == [7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question: q\n", "`notebook`: Field required"),
        ("question: q\nnotebook: smal.ipynb\n", r"did you mean 'small\.ipynb'"),
        ("question: q\nnotebook: small.ipynb\nparametres: {}\n", "did you mean 'parameters'"),
        ("question: q\nnotebook: small.ipynb\nparameters: {stepps: 1}\n", "did you mean 'steps'"),
        ("question: q\nnotebook: small.ipynb\nquick: {steps: 1e1}\n", r"YAML reads 1e1 as text: write 10\.$"),
        ("question: q\nnotebook: small.ipynb\nmatrix: {steps: []}\n", "at least one value"),
        ("question: q\nnotebook: small.ipynb\nmatrix: {steps: 3}\n", "`matrix.steps`"),
        ("question: [q\n", r"is not YAML: expected.*\(line \d\)"),
        ("", "is empty"),
        ("- a\n", "is a list"),
    ],
)
def test_a_mistaken_study_is_one_sentence_before_anything_runs(small, content, message):
    (small / "studies" / "small.yaml").write_text(content)
    with pytest.raises(WorkbenchError, match=message):
        run_study("small")
    assert Store().search("studies", "full") == []


def test_a_study_that_is_named_twice_runs_once(small, command):
    code, output, _ = command("study", "small", "studies/small.yaml", "--dry-run")
    assert code == 0 and "1 to run, 0 reused" in output


def test_an_unknown_study_names_the_nearest(small):
    with pytest.raises(WorkbenchError, match="unknown study 'smal': did you mean 'small'"):
        run_study("smal")


def clusters():
    return [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]


@pytest.mark.slow
def test_on_ray_the_notebook_submits_to_the_cluster_that_it_runs_on(small, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    store, seen = Store(), []
    try:
        (run_id,) = run_study(
            "small",
            store=store,
            overrides={"steps": "1"},
            executor="ray:2,threads=1",
            listener=after_two_trainings(lambda: seen.append(len(clusters()))),
        )
    finally:
        ray.shutdown()
    assert store.status(run_id) == "FINISHED", store.get(run_id).tags.get("cause")
    assert statuses(store) == (["FINISHED"], ["FINISHED"] * 4)
    assert seen == [1]


def planned_execution(study="own_network", **given):
    return plan([Study.load(study)], Store(), quick=True, overrides=given)[0]


def test_other_bytes_in_a_file_of_weights_are_another_execution(root, monkeypatch):
    monkeypatch.chdir(root)
    weights = root / "w.safetensors"
    weights.write_bytes(b"one")
    first = planned_execution(weights="w.safetensors", folder="out")
    assert first.parameters["weights"] == str(weights) and first.parameters["folder"] == str(root / "out")
    weights.write_bytes(b"two")
    second = planned_execution(weights="w.safetensors", folder="out")
    assert first.key["data"] != second.key["data"] and first.key["parameters"] == second.key["parameters"]


def test_released_weights_that_were_fetched_since_are_another_execution(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(root))
    before = planned_execution(model="nfnet_f0", weights="released")
    (root / "F0_haiku.npz").touch()
    assert before.key["data"] != planned_execution(model="nfnet_f0", weights="released").key["data"]


@pytest.mark.parametrize(
    ("study", "given", "message"),
    [
        ("large_batch", {"model_bn": "resnet_tinny"}, "did you mean 'resnet_tiny'"),
        ("large_batch", {"device": "cuda:9"}, "is not on this machine"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused_before(root, study, given, message):
    with pytest.raises(WorkbenchError, match=message):
        planned_execution(study, **given)


def test_noise_alone_is_no_data(root):
    assert planned_execution("signal_propagation", data="null").parameters["data"] is None


def test_two_files_of_one_name_are_not_one_study(small):
    (small / "other").mkdir()
    (small / "other" / "small.yaml").write_text("question: Another?\nnotebook: small.ipynb\n")
    both = ["small", small / "other" / "small.yaml"]
    with pytest.raises(WorkbenchError, match=r"have one name, small: rename one"):
        distinct(both)
    assert len(distinct(["small", small / "studies" / "small.yaml"])) == 1


@pytest.mark.parametrize("name", ["small (copy)", "it's", "a+b"])
def test_a_file_name_that_the_store_cannot_take_is_refused(small, name):
    (small / "studies" / f"{name}.yaml").write_text("question: Does it run?\nnotebook: small.ipynb\n")
    with pytest.raises(WorkbenchError, match="rename it"):
        Study.load(name)
