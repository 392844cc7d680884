"""Tests of the launcher: a killed notebook closes its runs, and the next start runs only what is missing.

Evidence: real kernels are killed, and the store is inspected. A small notebook has four trainings.
"""

import json
import os
import re
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
    "from workbench.lab import open_session, run_all\n"
    "from workbench.lab.statistics.intervals import t_interval\n"
    "from workbench.lab.statistics.verdict import Effect, Verdict\n"
    "from workbench.training import TrainConfig\nsession = open_session('small', globals())",
    "base = TrainConfig(steps=steps, batch_size=16, train_size=64, eval_every=1, device='cpu')\n"
    "table = session.table(run_all([base.replace(seed=s) for s in range(4)], session))",
    "session.verdict(Verdict(None, Effect('accuracy', t_interval(table.val_acc)), 'done', table[['seed', 'val_acc']]))",
)


@pytest.fixture
def small(root):
    """A root whose only study trains four tiny networks."""
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
    """A listener that calls `action` once, when two trainings have ended and the third has begun."""
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
def test_a_killed_study_stores_the_cause_and_continues_where_it_stopped(small, victims, sig, status, cause):
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


def test_a_notebook_that_raises_ends_failed_with_its_error_and_report(small):
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
        [sys.executable, "-m", "workbench.cli", "study", "small", "-p", "steps=3000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=CHECKOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    store = Store()
    deadline = time.monotonic() + 60
    while not store.search("trainings", "full") and time.monotonic() < deadline:
        time.sleep(0.3)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert family
    launcher.send_signal(sig)
    _, err = launcher.communicate(timeout=30)
    psutil.wait_procs(family, timeout=15)
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "an orphan still runs"
    if sig == signal.SIGKILL:
        store.close_orphans()  # as `study` does first, and `doctor --fix`
    else:
        assert launcher.returncode == expected
        assert ("interrupted" in err) == (sig == signal.SIGINT)
    studies, trainings = statuses(store)
    assert studies == ["KILLED"]
    assert trainings == ["KILLED"]


@pytest.mark.parametrize("kind", ["started", pytest.param("ended", marks=pytest.mark.slow)])
def test_a_listener_that_breaks_leaves_no_running_run(small, kind):
    """Such as a terminal that nobody reads any more."""

    def breaks(event):
        if event["kind"] == kind:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run_study("small", overrides={"steps": "2"}, listener=breaks)
    studies, _ = statuses(Store())
    assert studies == ["FINISHED" if kind == "ended" else "KILLED"]


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


def test_the_plan_gives_the_reason_of_each_state(small):
    """The runs are stored as launchers store them, without kernels."""
    store, study = Store(), Study.load("small")

    def store_run(status, cause=None, **changed):
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
    run_id = store_run("FAILED", "MemoryError")
    assert planned() == ("run", "failed", f"run {run_id[:8]}: MemoryError")
    assert planned(rerun="stale")[0] == "leave" and planned(rerun="failed")[0] == "run"
    run_id = store_run("FINISHED", code="other", data="other")
    assert planned() == ("run", "stale", f"code and data changed since run {run_id[:8]}")
    run_id = store_run("KILLED", "interrupted")
    assert planned() == ("run", "interrupted", f"run {run_id[:8]}")
    run_id = store_run("RUNNING")
    assert planned() == ("leave", "running", f"run {run_id[:8]}, in another process")
    store.set_tags(
        run_id, process="/".join([*whoami().split("/")[:-2], "999999", "1"])
    )  # a process that does not exist
    assert planned() == ("run", "interrupted", f"run {run_id[:8]}: its process ended before it did")
    store_run("FINISHED")
    assert planned()[:2] == ("reuse", "finished") and planned(rerun="all")[0] == "run"
    with pytest.raises(WorkbenchError, match=r"--rerun 'stal'.*'stale'"):
        planned(rerun="stal")


def test_a_manual_run_does_not_change_the_estimated_duration(small):
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
    assert [e.parameters["steps"] for e in plan([study], store, quick=True)] == [
        1
    ]  # quick mode makes both points equal
    assert [e.parameters["steps"] for e in plan([study], store, quick=False, overrides={"steps": "7"})] == [7]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question: q\n", r"`notebook`.*Field required"),
        ("question: q\nnotebook: smal.ipynb\n", r"smal\.ipynb'.*'small\.ipynb'"),
        ("question: q\nnotebook: small.ipynb\nparametres: {}\n", r"'parametres'.*'parameters'"),
        ("question: q\nnotebook: small.ipynb\nparameters: {stepps: 1}\n", r"'stepps'.*'steps'"),
        ("question: q\nnotebook: small.ipynb\nquick: {steps: 1e1}\n", r"`steps`.*10\.0.*[Ww]rite 10\b"),
        ("question: q\nnotebook: small.ipynb\nmatrix: {steps: []}\n", r"`matrix\.steps`.*\[\]"),
        ("question: q\nnotebook: small.ipynb\nmatrix: {steps: 3}\n", r"`matrix\.steps`.*list"),
        ("question: [q\n", r"small\.yaml.*YAML.*expected.*\(line \d\)"),
        ("", r"small\.yaml.*empty"),
        ("- a\n", r"small\.yaml.*a list"),
    ],
)
def test_an_invalid_study_is_refused_before_anything_runs(small, content, message):
    (small / "studies" / "small.yaml").write_text(content)
    with pytest.raises(WorkbenchError, match=message):
        run_study("small")
    assert Store().search("studies", "full") == []


def test_a_study_that_is_named_twice_runs_once(small, command):
    code, output, _ = command("study", "small", "studies/small.yaml", "--dry-run")
    assert code == 0 and "1 to run, 0 reused" in output


def test_the_error_for_an_unknown_study_names_the_nearest_study(small):
    with pytest.raises(WorkbenchError, match=r"study 'smal'.*'small'"):
        run_study("smal")


def clusters():
    return [p for p in psutil.Process().children(recursive=True) if p.name() == "gcs_server"]


@pytest.mark.slow
def test_on_ray_a_notebook_submits_its_trainings_to_the_cluster_it_runs_on(small, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    store, cluster_counts = Store(), []
    try:
        (run_id,) = run_study(
            "small",
            store=store,
            overrides={"steps": "1"},
            executor="ray:2,threads=1",
            listener=after_two_trainings(lambda: cluster_counts.append(len(clusters()))),
        )
    finally:
        ray.shutdown()
    assert store.status(run_id) == "FINISHED", store.get(run_id).tags.get("cause")
    assert statuses(store) == (["FINISHED"], ["FINISHED"] * 4)
    assert cluster_counts == [1]


def planned_execution(study="own_network", **given):
    return plan([Study.load(study)], Store(), quick=True, overrides=given)[0]


def test_new_bytes_in_a_weights_file_change_the_execution_key(root, monkeypatch):
    monkeypatch.chdir(root)
    weights = root / "w.safetensors"
    weights.write_bytes(b"one")
    first = planned_execution(weights="w.safetensors", folder="out")
    assert first.parameters["weights"] == str(weights) and first.parameters["folder"] == str(root / "out")
    weights.write_bytes(b"two")
    second = planned_execution(weights="w.safetensors", folder="out")
    assert first.key["data"] != second.key["data"] and first.key["parameters"] == second.key["parameters"]


def test_downloading_released_weights_changes_the_execution_key(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(root))
    before = planned_execution(model="nfnet_f0", weights="released")
    (root / "F0_haiku.npz").touch()
    assert before.key["data"] != planned_execution(model="nfnet_f0", weights="released").key["data"]


@pytest.mark.parametrize(
    ("study", "given", "message"),
    [
        ("large_batch", {"model_bn": "resnet_tinny"}, r"'resnet_tinny'.*'resnet_tiny'"),
        ("large_batch", {"device": "cuda:9"}, "cuda:9"),
    ],
)
def test_a_model_or_device_that_the_kernel_would_refuse_is_refused_by_the_plan(root, study, given, message):
    with pytest.raises(WorkbenchError, match=message):
        planned_execution(study, **given)


def test_a_study_with_noise_instead_of_data_has_no_data_parameter(root):
    assert planned_execution("signal_propagation", data="null").parameters["data"] is None


def test_two_studies_with_the_same_name_are_refused(small):
    (small / "other").mkdir()
    (small / "other" / "small.yaml").write_text("question: Another?\nnotebook: small.ipynb\n")
    both = ["small", small / "other" / "small.yaml"]
    with pytest.raises(WorkbenchError, match=r"name small.*/studies/small\.yaml.*/other/small\.yaml"):
        distinct(both)
    assert len(distinct(["small", small / "studies" / "small.yaml"])) == 1


@pytest.mark.parametrize("name", ["small (copy)", "it's", "a+b"])
def test_a_file_name_with_characters_that_are_not_allowed_is_refused(small, name):
    (small / "studies" / f"{name}.yaml").write_text("question: Does it run?\nnotebook: small.ipynb\n")
    with pytest.raises(WorkbenchError, match=re.escape(f"{name}.yaml")) as error:
        Study.load(name)
    assert "letters, digits" in str(error.value)
