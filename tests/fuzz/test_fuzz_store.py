"""Damaged databases and edited runs. Evidence: every command works or says what is wrong; `doctor` always ends."""

import contextlib
import json
import shutil
import sqlite3

import pytest
from support.mutations import ODD, meet, mutated, odd_tree
from support.store_runs import log_training, result

from workbench.errors import WorkbenchError
from workbench.lab import Store, Study
from workbench.lab.compare import summary
from workbench.lab.compare.diff import diff
from workbench.lab.compare.table import from_store
from workbench.lab.doctor import examine
from workbench.lab.store.stored_results import RESULT
from workbench.lab.studies.executions import plan

pytestmark = pytest.mark.slow
FILES = 30  # damaged databases
EDITS = 20  # rounds of edited rows; each reads the store in all ways

TAGS = ["key", "arm", "role", "outcome", "cause", "config_id", "code", "data", "device", "mode", "process", "owner"]
TAGS += ["study", "study.large_batch", "key.parameters", "key.code", "mlflow.user", "mlflow.note.content", "x"]
PARAMS = ["model", "data", "batch_size", "lr", "clip", "seed", "steps", "epochs", "train_size", "width", "x"]
METRICS = ["val_acc", "test_acc", "train_loss", "failed", "device_seconds", "samples_seen", "x"]
TIMES = [None, 0, -1, 2**40, 2**62, "x"]
COLUMNS = {
    "status": ["RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED", None],
    "name": ["", None, "a\nb", "x" * 250],
    "start_time": TIMES,
    "end_time": TIMES,
    "artifact_uri": [None, "", "file:///nowhere", "/etc", "s3://x/y", "%zz", "mlflow-artifacts:/x", "file://host/x"],
    "lifecycle_stage": ["deleted", "active"],
    "user_id": [None, "x"],
    "experiment_id": [0, 1, 2, 3],
}
EVERY = [(column, value) for column, values in COLUMNS.items() for value in values]
TEXTS = [str(value)[:400] for value in ODD if value != "\ud800"]
TEXTS += ["complete", "diverged", "pruned", "confirm", "search", "nan", "host/1/2/3"]
NUMBERS = [0.0, -1.0, 1e308, -1e308, 0.5, 2.0, 1e-320]
STEPS = [0, 1, -5, 2**62]


@pytest.fixture
def filled(root):
    """Root with three trainings and a notebook execution. The database is one file."""
    store = Store()
    outcomes = {"a": "complete", "b": "complete", "c": "diverged"}
    trainings = [log_training(store, outcome, key * 64) for key, outcome in outcomes.items()]
    study = Study.load("large_batch")
    (execution,) = plan([study], store, quick=True)
    tags = {f"key.{part}": value for part, value in execution.key.items()}
    run = store.open_notebook("large_batch", study.notebook, {}, "quick", "x", tags)
    store.close(run, "FINISHED")
    _one_file(root / "mlruns" / "mlflow.db")
    return root, trainings, run


def _one_file(file):
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("pragma wal_checkpoint(truncate)")


def use_everything(runs):
    """Read the store in all ways. Each works, or says in one sentence why not."""
    store = Store()
    acts = [
        lambda: summary.as_text(from_store(store)),
        lambda: from_store(store, equal="samples"),
        lambda: diff(store, runs[0], runs[1]),
        lambda: plan([Study.load("large_batch")], store, quick=True),
        lambda: store.close_orphans(),
        lambda: [store.find_training(key * 64, "full") for key in "abc"],
    ]
    for act in acts:
        try:
            act()
        except WorkbenchError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500


def mend():
    for finding in examine():
        assert finding.what and finding.cure and "\n" not in finding.what
        if finding.mend:
            finding.mend()


def test_bytes_of_the_database(filled, rng):
    root, trainings, _ = filled
    file = root / "mlruns" / "mlflow.db"
    whole = file.read_bytes()

    def damaged():
        content = bytearray(whole)
        for _ in range(rng.choice([1, 3, 30])):
            size = len(whole)
            at = rng.choice([rng.randrange(100), rng.randrange(size), 4096 * rng.randrange(size // 4096)])
            content[at : at + 16] = mutated(bytes(content[at : at + 16]), rng)[:16].ljust(16, b"\0")
        return bytes(content[: rng.choice([len(whole), len(whole), rng.randrange(len(whole))])])

    def read(content):
        for log in file.parent.glob("mlflow.db*"):
            log.unlink()
        file.write_bytes(content)
        list(examine())
        use_everything(trainings)

    meet([damaged() for _ in range(FILES)], read)


def set_column(database, run, column, value):
    database.execute(f"update runs set {column} = ? where run_uuid = ?", (value, run))


def edit(database, rng, run):
    """Change one row of MLflow's tables, or delete some."""
    text = rng.choice(TEXTS)
    match rng.choice(["run", "tag", "param", "metric", "delete"]):
        case "run":
            set_column(database, run, *rng.choice(EVERY))
        case "tag":
            database.execute("replace into tags (key, value, run_uuid) values (?, ?, ?)", (rng.choice(TAGS), text, run))
        case "param":
            row = rng.choice(PARAMS), text, run
            database.execute("replace into params (key, value, run_uuid) values (?, ?, ?)", row)
        case "metric":
            name, number = rng.choice(METRICS), rng.choice(NUMBERS)
            row = name, number, rng.choice(STEPS), rng.random() < 0.2, rng.choice(STEPS), run
            columns = "(key, value, timestamp, is_nan, step, run_uuid) values (?, ?, ?, ?, ?, ?)"
            for table in ("metrics", "latest_metrics"):
                database.execute(f"replace into {table} {columns}", row)
        case "delete":
            table, like = rng.choice(["tags", "params", "latest_metrics"]), rng.choice(["%", "k%", "a%", "c%", "v%"])
            database.execute(f"delete from {table} where run_uuid = ? and key like ?", (run, like))


def test_edited_runs(filled, rng):
    root, trainings, notebook = filled
    place, kept = root / "mlruns", root.with_name("kept")
    shutil.copytree(place, kept)
    whole = json.loads(result().to_json())

    def read(number):
        rng.seed(number)
        shutil.rmtree(place)
        shutil.copytree(kept, place)
        connection = contextlib.closing(sqlite3.connect(place / "mlflow.db"))
        with connection as database, database, contextlib.suppress(sqlite3.IntegrityError):  # MLflow has rules, too
            if number < len(EVERY):
                for run in (trainings[0], notebook):
                    set_column(database, run, *EVERY[number])
            for _ in range(rng.choice([1, 2, 6]) if number >= len(EVERY) else 0):
                edit(database, rng, rng.choice([*trainings, notebook]))
        if number >= len(EVERY) and rng.random() < 0.4:
            (file,) = place.glob(f"artifacts/trainings/{rng.choice(trainings)}/artifacts/{RESULT}")
            file.write_text(json.dumps(odd_tree(whole, rng)))
        use_everything(trainings)
        mend()
        use_everything(trainings)

    meet(range(len(EVERY) + EDITS), read)
