"""What users of MLflow's pages do to the store, action by action, and what the product answers.

Evidence: each action goes through MLflow's client, as its server does it, on a store with some of everything. Every
command then looks at the store: none may end in a traceback, and no result may be out of sight without a word.

An answer has four parts:

1. the results of trainings that the product shows: all, or all but N. It must name the missing ones.
2. what the next start of the study does: reuse its run, or run (finished trainings are reused then), for both modes
3. the kinds of damage that `doctor` finds: well if none
4. the same after `doctor --fix`, if that changed anything
"""

import re

import pytest
from mlflow.entities import Metric, Param, ViewType
from support.busy_store import BusyStore
from support.mlflow_view import client
from support.roots import copy_of_root

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.compare import selection
from workbench.outcomes import RESULTS

pytestmark = pytest.mark.slow

TRAININGS, STUDIES = "trainings", "studies"


class Pages:
    """MLflow's client on the busy store, with short words for what its pages do."""

    def __init__(self, busy):
        self.busy, self.ids, self.store = busy, busy.ids, Store()
        self.client = client(self.store)

    def experiment(self, name):
        (experiment,) = [e for e in self.client.search_experiments(ViewType.ALL) if e.name == name]
        return experiment.experiment_id

    def file(self, run, path):
        """Return where a file of a run is, on the disk of the server."""
        return self.store.get(self.ids[run]).folder / path

    def delete(self, run):
        self.client.delete_run(self.ids[run])

    def delete_for_good(self, run):
        self.client._tracking_client.store._hard_delete_run(self.ids[run])

    def tag(self, run, **tags):
        for name, value in tags.items():
            self.client.set_tag(self.ids[run], name, value)

    def untag(self, run, name):
        self.client.delete_tag(self.ids[run], name)

    def set_status(self, run, status):
        self.client.update_run(self.ids[run], status=status)


def delete_and_restore(p):
    p.delete("training")
    p.client.restore_run(p.ids["training"])


def delete_all_trainings(p):
    for run in p.store.runs(TRAININGS):
        p.client.delete_run(run.id)


def delete_and_restore_experiment(p):
    p.client.delete_experiment(p.experiment(TRAININGS))
    p.client.restore_experiment(p.experiment(TRAININGS))


def take_the_name(p):
    p.client.rename_experiment(p.experiment(STUDIES), "my studies")
    p.client.create_experiment(STUDIES)


def delete_experiment_for_good(p):
    p.client.delete_experiment(p.experiment("checks"))
    p.client._tracking_client.store._hard_delete_experiment(p.experiment("checks"))


def create_runs(p):
    for name in (TRAININGS, STUDIES, "checks", "replays"):
        run = p.client.create_run(p.experiment(name), run_name="mine")
        p.client.log_metric(run.info.run_id, "val_acc", 0.99)
        p.client.set_terminated(run.info.run_id)


def create_a_run_that_looks_finished(p):
    tags = {"key": "mine", "outcome": "complete", "mode": "full", "role": "screen", "study.small": "x"}
    run = p.client.create_run(p.experiment(TRAININGS), run_name="mine", tags=tags)
    p.client.log_metric(run.info.run_id, "val_acc", 0.99)
    p.client.set_terminated(run.info.run_id)


def create_foreign_experiment(p):
    experiment = p.client.create_experiment("mine")
    p.client.set_terminated(p.client.create_run(experiment).info.run_id)


def register(p):
    p.client.create_registered_model("mine")
    p.client.create_model_version("mine", f"runs:/{p.ids['training']}/model", p.ids["training"])


def log_metrics(p):
    metrics = [Metric("val_acc", value, 0, step) for step, value in ((5, 0.99), (2**40, 1e300))]
    p.client.log_batch(p.ids["training"], metrics=metrics, params=[Param("mine", "yes")])


def strange_tags(p):
    p.tag("training", **{"arm": "[bold]\x1b[31m" + "a" * 4000, "config_id": "\u202e'; drop", "cause": "\n" * 20})


def swap_keys(p):
    p.tag("training", key=p.store.get(p.ids["alone"]).tags["key"])


def empty_file(p):
    p.file("training", "result.json").write_bytes(b"")


def move_files(p):
    folder = p.file("training", "")
    folder.rename(folder.with_name("elsewhere"))


def rename(p, run, path, name):
    file = p.file(run, path)
    file.rename(file.with_name(name))


ACTIONS = [  # what somebody does, and the answer
    # runs of the study and of a claim
    ("delete the study's run", lambda p: p.delete("study"), "all; run+reuse; well"),
    ("delete the study's run for good", lambda p: p.delete_for_good("study"),
     "all; run+reuse; files of no run -> all; run+reuse; well"),
    ("rename the study's run", lambda p: p.client.update_run(p.ids["study"], name="mine"), "all; reuse; well"),
    ("edit the note of the study's run", lambda p: p.tag("study", **{"mlflow.note.content": "[x] mine"}),
     "all; reuse; well"),
    ("change the study's name in its tag", lambda p: p.tag("study", study="mine"), "all; run+reuse; well"),
    ("remove the study's key", lambda p: p.untag("study", "key.parameters"), "all; run+reuse; well"),
    ("set the study's run to FAILED", lambda p: p.set_status("study", "FAILED"), "all; run+reuse; well"),
    ("set the study's run to RUNNING", lambda p: p.set_status("study", "RUNNING"),
     "all; run+reuse; runs -> all; run+reuse; well"),
    ("delete the study's environment.txt", lambda p: p.file("study", "environment.txt").unlink(),
     "all; reuse; results -> all; run+reuse; well"),
    ("delete the table of the claim's run", lambda p: p.file("claim", "tables/table.parquet").unlink(),
     "all; reuse; well"),
    ("delete the claim's run", lambda p: p.delete("claim"), "all; reuse; well"),
    # trainings
    ("delete a training", lambda p: p.delete("training"), "all but 1; reuse; well"),
    ("delete a training, then restore it", delete_and_restore, "all; reuse; well"),
    ("delete a training for good", lambda p: p.delete_for_good("training"),
     "all but 1; reuse; files of no run -> all but 1; reuse; well"),
    ("delete a search's training", lambda p: p.delete("trial"), "all but 1; reuse; trials -> all; reuse; well"),
    ("delete a search's training for good", lambda p: p.delete_for_good("trial"),
     "all but 1; reuse; files of no run -> all but 1; reuse; well"),
    ("delete all trainings", delete_all_trainings, "all but 6; reuse; trials -> all but 4; reuse; well"),
    ("delete the diverged training of a replay", lambda p: p.delete("diverged"), "all but 1; reuse; well"),
    ("rename a training", lambda p: p.client.update_run(p.ids["training"], name="mine"), "all; reuse; well"),
    ("put strange text into a training's tags", strange_tags, "all; reuse; edits -> all; reuse; well"),
    ("change a training's key to another's", swap_keys, "all; reuse; edits -> all; reuse; well"),
    ("remove a training's key", lambda p: p.untag("training", "key"), "all; reuse; edits -> all; reuse; well"),
    ("change a training's outcome", lambda p: p.tag("training", outcome="great"),
     "all but 1; reuse; edits -> all; reuse; well"),
    ("set a training to RUNNING", lambda p: p.set_status("training", "RUNNING"),
     "all but 1; reuse; edits -> all; reuse; well"),
    ("set a training to FAILED", lambda p: p.set_status("training", "FAILED"),
     "all but 1; reuse; edits -> all; reuse; well"),
    ("set a training to SCHEDULED", lambda p: p.set_status("training", "SCHEDULED"),
     "all but 1; reuse; edits -> all; reuse; well"),
    ("log metrics to a finished training", log_metrics, "all; reuse; edits -> all; reuse; well"),
    ("rename a training's result.json", lambda p: rename(p, "training", "result.json", "mine.json"),
     "all; reuse; results -> all but 1; reuse; well"),
    ("empty a training's result.json", empty_file, "all; reuse; results -> all but 1; reuse; well"),
    ("delete a training's history", lambda p: p.file("training", "tables/history.parquet").unlink(),
     "all; reuse; well"),
    ("move a training's files away", move_files, "all; reuse; results -> all but 1; reuse; well"),
    ("set a failed training to FINISHED", lambda p: p.set_status("failed", "FINISHED"),
     "all; reuse; results -> all; reuse; well"),
    # experiments and the rest
    ("delete the experiment trainings", lambda p: p.client.delete_experiment(p.experiment(TRAININGS)),
     "all; reuse; well"),
    ("delete and restore the experiment trainings", delete_and_restore_experiment, "all; reuse; well"),
    ("delete the experiment checks for good", delete_experiment_for_good,
     "all; reuse; files of no run -> all; reuse; well"),
    ("rename the experiment trainings", lambda p: p.client.rename_experiment(p.experiment(TRAININGS), "mine"),
     "all; reuse; well"),
    ("rename studies and take its name", take_the_name, "all; reuse; well"),
    ("create runs in our experiments", create_runs, "all; reuse; well"),
    ("create a run that looks finished", create_a_run_that_looks_finished, "all; reuse; results -> all; reuse; well"),
    ("create an experiment with a run", create_foreign_experiment, "all; reuse; well"),
    ("register a model from a training", register, "all; reuse; well"),
    ("delete a replay", lambda p: p.delete("replay"), "all; reuse; well"),
]  # fmt: skip


@pytest.fixture(scope="module")
def busy(tmp_path_factory, template_root):
    folder = tmp_path_factory.mktemp("busy")
    with pytest.MonkeyPatch.context() as patch:
        root = copy_of_root(template_root, folder / "root", patch)
        yield BusyStore(root, folder / "copy")


LOOKS = (
    ("compare",),
    ("compare", "--quick"),
    ("compare", "small"),
    ("compare", "--equal", "samples"),
    ("claims", "--from", "store", "large_batch"),
    ("diff", "{training}", "{alone}"),
    ("diff", "{study}", "{claim}"),
    ("study", "small", "--dry-run", "--rerun", "failed"),
)


NAMING = ("before", "compare", "doctor", "study")  # commands that must name what is missing


class Look:
    """One look at the store with all commands."""

    def __init__(self, busy, command, wanted, lines=LOOKS, before=""):
        self.outputs = {("before",): before}
        self.command = command
        for line in lines:
            self.run(*(word.format(**busy.ids) for word in line))
        self.plans = [self.plan(*quick) for quick in ((), ("--quick",))]
        doctor = self.run("doctor")
        self.kinds = re.findall(r"^([a-z ]+?)\s+\d+\s+\d+\s+[\d.]+$", doctor, re.MULTILINE)
        lost = {run_id for run_id in wanted if run_id not in shown()}
        self.text = " ".join(text for line, text in self.outputs.items() if line[0] in NAMING)
        silent = [run_id for run_id in lost if run_id[:8] not in self.text]
        self.sight = f"all but {len(lost)}" if lost else "all"
        self.sight += f" ({len(silent)} SILENT)" if silent else ""

    def run(self, *line):
        code, out, errors = self.command(*line)
        text = out + errors
        assert code in (0, 1, 2) and "Traceback" not in text and "unexpected error" not in text, (line, text)
        self.outputs[line] = text
        return text

    def plan(self, *quick):
        text = self.run("study", "small", "--dry-run", *quick)
        return "reuse" if "reuse run" in text else "run" if "1 to run" in text else "leave"

    def __str__(self):
        return f"{self.sight}; {'+'.join(dict.fromkeys(self.plans))}; {', '.join(self.kinds) or 'well'}"


def shown():
    """Return the ids of the trainings that a comparison shows."""
    ids = set()
    for mode in ("full", "quick"):
        try:
            rows = selection.pick(Store(), mode=mode)
        except WorkbenchError:
            continue
        ids |= set(rows[(rows.status == "FINISHED") & rows.outcome.isin(RESULTS)].run_id)
    return ids


@pytest.mark.parametrize(("action", "answer"), [row[1:] for row in ACTIONS], ids=[row[0] for row in ACTIONS])
def test_the_product_answers_each_action_without_losing_a_result(busy, command, monkeypatch, action, answer):
    monkeypatch.setenv("WORKBENCH_ROOT", str(busy.root))
    monkeypatch.chdir(busy.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    busy.put_back()
    wanted = shown()
    action(Pages(busy))
    before = Look(busy, command, wanted)
    text = str(before)
    if before.kinds:
        after = Look(busy, command, wanted, LOOKS[:2], before.text + before.run("doctor", "--fix"))
        text = text if str(after) == text else f"{text} -> {after}"
    assert text == answer
    assert not (busy.root / "mlruns" / "errors").exists()
