"""Every notebook when all of its trainings diverge: it ends with a verdict that lists the causes."""

import json
import sys

import pytest
from support.checkout import CHECKOUT

from workbench.lab import Store
from workbench.training import TrainResult, worker_task

WITHOUT_TRAININGS = {"compare_runs", "signal_propagation"}
NOTEBOOKS = sorted({file.stem for file in (CHECKOUT / "notebooks").glob("*.ipynb")} - WITHOUT_TRAININGS)
CAUSE = "the loss is not finite at step 3"


def diverging(config, *_, **__):
    metrics = {"val_acc": 0.1, "failed": 1, "failed_at_step": 3, "steps_done": 3, "images_per_second": 100.0}
    times = {"device_seconds": 1.0, "steps_planned": 60, "samples_seen": 48, "n_params": 10, "depth": 3}
    return TrainResult(
        key=worker_task.training_key(config, worker_task.source_digest(config)),
        config=config, outcome="diverged", history=[], metrics=metrics | times, cause=CAUSE, device="cpu",
    )  # fmt: skip


def cells(study):
    notebook = json.loads((CHECKOUT / "notebooks" / f"{study}.ipynb").read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("study", NOTEBOOKS)
def test_a_notebook_in_which_every_training_diverges_ends_with_a_verdict(study, root, monkeypatch):
    monkeypatch.setattr(worker_task, "train", diverging)
    monkeypatch.chdir(CHECKOUT)
    namespace = {"display": lambda *_: None, "__name__": study}
    monkeypatch.setitem(sys.modules, study, None)
    for source in cells(study):
        exec(source, namespace)
    (run,) = Store().search("studies", "full", f"tags.study = '{study}'")
    assert run.status == "FINISHED" and run.tags["verdict"]
    assert "holds" not in run.metrics
    if study != "start_here":  # it shows no claim
        table = Store().read_table(run.id, "verdict")
        assert set(table.outcome) == {"diverged"} and set(table.cause) == {CAUSE}
