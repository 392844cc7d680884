"""A store with some of everything, which a test can put back after each damage.

It holds a finished study in both modes, with trainings and a search, trainings that diverged, failed and were
interrupted, a replay, a check, and a finished execution of a claim's study.
"""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pandas as pd

from support.checkout import CHECKOUT
from support.notebooks import notebook
from support.searches import BASE
from workbench.lab import Session, Store, run_study
from workbench.lab.jobs.check import check_model
from workbench.lab.jobs.replay import replay
from workbench.lab.jobs.run_all import run_training
from workbench.lab.studies.spec import Study

CELLS = (
    "from workbench.lab import open_session, run_all, search\n"
    "from workbench.lab.statistics.intervals import t_interval\n"
    "from workbench.lab.statistics.verdict import Effect, Verdict\nfrom workbench.training import TrainConfig\n"
    "session = open_session('small', globals())",
    "base = TrainConfig(steps=steps, batch_size=16, train_size=64, eval_every=steps, device='cpu')\n"
    "table = session.table(run_all([base.replace(seed=s) for s in range(2)], session))",
    "space = {'clip': {'low': 0.002, 'high': 0.64, 'log': True}}\n"
    "searched = search(lambda p: base.replace(**p), space, trials=2, session=session)",
    "session.verdict(Verdict(None, Effect('accuracy', t_interval(table.val_acc)), 'done', table[['seed', 'val_acc']]))",
)
DATABASES = ("mlflow.db", "optuna.db")


class BusyStore:
    """The store, the ids of its runs by what they are, and a copy of its files."""

    def __init__(self, root: Path, copy: Path):
        self.root, self.copy, self.ids = root, copy, {}
        for name in ("notebooks", "studies"):
            shutil.copytree(CHECKOUT / name, root / f"own_{name}")
            (root / name).unlink()
            (root / f"own_{name}").rename(root / name)
        notebook(root / "notebooks" / "small.ipynb", "steps: int = 4  # of each training", *CELLS)
        (root / "studies" / "small.yaml").write_text(
            "question: Does it run?\nnotebook: small.ipynb\nquick: {steps: 2}\n"
        )
        self.fill(Store())
        shutil.copytree(root / "mlruns", copy, ignore=shutil.ignore_patterns("*-wal", "*-shm", *DATABASES))
        for name in DATABASES:
            _backup(root / "mlruns" / name, copy / name)

    def fill(self, store: Store) -> None:
        """Make the runs."""
        for quick in (False, True):
            (self.ids["quick study" if quick else "study"],) = run_study("small", quick=quick, store=store)
        for run in store.runs("trainings"):
            self.ids["trial" if run.tags["role"] == "search" else "training"] = run.id
        session = Session(store, "", "full")
        for name, changes in (("alone", {}), ("diverged", {"base_lr": 1e6, "clip": None, "steps": 30, "warmup": 0.0})):
            self.ids[name], result, _ = run_training(BASE.replace(**changes), session, role="screen", arm="NF")
        assert result.outcome == "diverged"
        self.ids["replay"] = replay(self.ids["diverged"], back=2, progress=False, say=lambda line: None).run_id
        for name, status in (("failed", "FAILED"), ("interrupted", "KILLED")):
            self.ids[name] = store.open_training(BASE, name, "full", role="screen", arm="NF", owner=None)
            store.set_tags(self.ids[name], outcome="failed", cause=f"it {name}")
            store.close(self.ids[name], status)
        self.ids["check"], _ = check_model("nf_resnet_tiny", batch_size=2, image_size=32)
        self.ids["claim"] = self._claim(store)

    def _claim(self, store: Store) -> str:
        study = Study.load("large_batch")
        (parameters,) = study.executions(quick=False)
        run_id = store.open_notebook("large_batch", "large_batch.ipynb", parameters, "full", "large_batch", {})
        store.log_table(run_id, pd.read_csv(CHECKOUT / "docs" / "results" / "large_batch.csv"), "table")
        store.log_text(run_id, "python", "environment.txt")
        store.close(run_id, "FINISHED")
        return run_id

    def put_back(self) -> None:
        """Undo what happened to the store since it was filled. Connections stay open."""
        place = self.root / "mlruns"
        for name in DATABASES:
            _backup(self.copy / name, place / name)
        for entry in place.iterdir():
            if not entry.name.startswith((*DATABASES, ".")):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        shutil.copytree(self.copy, place, ignore=shutil.ignore_patterns(*DATABASES, ".*"), dirs_exist_ok=True)


def _backup(source: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as old, contextlib.closing(sqlite3.connect(target)) as new:
        old.backup(new)
