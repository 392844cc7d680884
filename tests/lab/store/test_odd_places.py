"""A store under a root with an odd name: its files and both databases are in that root, and are found again."""

import optuna
import pytest

from workbench.lab import Store, run_all, search
from workbench.lab.doctor import examine
from workbench.lab.jobs.search import _storage
from workbench.lab.store.database import Database, sqlite_file, sqlite_uri
from workbench.lab.store.locations import default_uri, runs_folder
from workbench.lab.studies.session import Session
from workbench.training import TrainConfig

NAMES = ["a%20b", "a%2Fb", "a?b=c", "a#b", "a b", "größe ünï 中", "100%", "a+b&c;d@e:f"]


@pytest.mark.parametrize("name", NAMES)
def test_a_sqlite_uri_names_its_file(name, tmp_path):
    file = tmp_path / name / "mlflow.db"
    assert sqlite_file(sqlite_uri(file)) == file


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_store_in_a_folder_of_any_name_is_in_that_folder(name, tmp_path, monkeypatch):
    root = tmp_path / name
    root.mkdir()
    (root / ".workbench").touch()
    monkeypatch.setenv("WORKBENCH_ROOT", str(root))
    monkeypatch.chdir(root)
    for variable in ("MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT", "WORKBENCH_OPTUNA_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    config = TrainConfig(model="nf_resnet_tiny", batch_size=32, steps=2, shift=0, device="cpu")
    store = Store()
    session = Session(store, "odd", "full", None)
    (row,) = run_all([config], session).to_dict("records")
    searched = search(
        lambda p: config.replace(base_lr=p["lr"]), {"lr": {"low": 0.01, "high": 0.1}}, trials=1, session=session
    )
    assert (
        store.get(row["run_id"]).folder.is_relative_to(root) and store.read_table(row["run_id"], "history") is not None
    )
    assert run_all([config], session).run_id.tolist() == [row["run_id"]]  # found again
    assert len(searched.trials) == 1 and optuna.get_all_study_names(_storage())
    assert {"mlflow.db", "optuna.db"} <= {file.name for file in runs_folder().iterdir()}
    assert sorted(file.name for file in tmp_path.iterdir()) == [name]  # nothing next to it
    assert Database(default_uri()).file == root / "mlruns" / "mlflow.db"
    assert [finding.what for finding in examine()] == []
