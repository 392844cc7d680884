"""Time common operations on a store of 2,000 trainings and 40 notebook executions.

The store's own methods write one run of each kind. All others are copies of its rows and files, because writing them
the usual way takes many minutes. Each copy has its own id, key and seed, and eight copies share a configuration.

The program prints a table of seconds. It fails if an operation takes too much of the process's own CPU time. The wall
clock does not count, because other processes disturb it on a shared machine.

    python benchmarks/large_store.py [--runs 2000] [--root DIR, kept]
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from workbench.lab import Study
from workbench.lab.compare.table import from_store
from workbench.lab.doctor import examine
from workbench.lab.store.client import Store
from workbench.lab.store.locations import files_of, runs_folder
from workbench.lab.store.stored_results import RESULT
from workbench.lab.studies.executions import execution_key, plan
from workbench.training import TrainConfig, TrainResult

STUDY = "large_batch"
EXECUTIONS = 40
POINTS = 30  # of each curve
SEEDS = 8  # per configuration
MAY_TAKE = 2.0  # seconds
TABLES = ("runs", "params", "tags", "metrics", "latest_metrics")
CURVES = ("epoch", "samples_seen", "lr", "train_loss", "val_loss", "val_acc", "clipped_share", "ratio_p99")


def key_of(number: int) -> str:
    """Make the key of a training. Any hash is good enough."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def write_training(store: Store) -> str:
    """Write a training to the store and return its run id."""
    config = TrainConfig(steps=POINTS, batch_size=64, base_lr=1.6, clip=0.04)
    history = [{"step": step} | dict.fromkeys(CURVES, 1 / step) for step in range(1, POINTS + 1)]
    metrics = dict.fromkeys(CURVES, 0.5) | {"failed": 0, "steps_planned": POINTS, "steps_done": POINTS, "depth": 26}
    run_id = store.open_training(config, key_of(0), "full", role="screen", arm="NF+AGC", owner=None)
    store.log_rows(run_id, history)
    result = TrainResult(key_of(0), config, "complete", history, metrics, device="cpu", data_digest="d", code="c")
    store.finish_training(run_id, result)
    store.tag_study(run_id, STUDY, "run")
    return run_id


def write_execution(store: Store) -> str:
    """Write a notebook execution to the store and return its run id."""
    study = Study.load(STUDY)
    (parameters, *_) = study.executions(quick=False)
    tags = {f"key.{part}": value for part, value in execution_key(study, parameters).items()}
    run_id = store.open_notebook(STUDY, study.notebook, parameters, "full", STUDY, tags | {"question": study.question})
    store.log_text(run_id, "# Python\n", "environment.txt")
    store.log_metrics(run_id, dict.fromkeys(CURVES, 0.5))
    store.close(run_id, "FINISHED")
    return run_id


def multiply(database: sqlite3.Connection, experiment: str, run_id: str, times: int) -> None:
    """Copy a run several times: its rows in all tables, and its files."""
    folder = files_of(experiment)
    for number in range(1, times + 1):
        new = uuid.uuid4().hex
        for table in TABLES:
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            changed = {"run_uuid": ":new", "artifact_uri": "replace(artifact_uri, :old, :new)"}
            copied = ", ".join(changed.get(column, f'"{column}"') for column in columns)
            names = ", ".join(f'"{column}"' for column in columns)
            database.execute(
                f"insert into {table} ({names}) select {copied} from {table} where run_uuid = :old",
                {"new": new, "old": run_id},
            )
        group = f"{number // SEEDS:08x}"
        values = {"new": new, "key": key_of(number), "seed": str(number % SEEDS), "group": group}
        database.execute("update tags set value = :key where run_uuid = :new and key = 'key'", values)
        database.execute("update tags set value = :group where run_uuid = :new and key = 'config_id'", values)
        database.execute("update params set value = :seed where run_uuid = :new and key = 'seed'", values)
        shutil.copytree(folder / run_id, folder / new)
        if (result := folder / new / "artifacts" / RESULT).exists():  # what the database says must agree with it
            content = json.loads(result.read_text())
            content["config"]["seed"] = number % SEEDS
            result.write_text(json.dumps(content | {"key": key_of(number)}))


def make(runs: int) -> None:
    """Fill the store under WORKBENCH_ROOT."""
    store = Store()
    first, second = write_training(store), write_execution(store)
    with contextlib.closing(sqlite3.connect(runs_folder() / "mlflow.db")) as database, database:
        multiply(database, "trainings", first, runs - 1)
        multiply(database, "studies", second, EXECUTIONS - 1)


def seconds(call, times: int = 5) -> tuple[float, float]:
    """Return medians over a few calls: of the wall clock, and of the process's own CPU time."""
    taken = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(statistics.median(each) for each in zip(*taken, strict=True))


def measured(runs: int) -> dict[str, tuple[float, float]]:
    """Time all operations. Return by operation its seconds by the wall clock, and of CPU time."""
    store, study = Store(), Study.load(STUDY)
    assert len(store.search("trainings", "full")) == runs
    assert store.find_training(key_of(runs - 1), "full") is not None
    assert plan([study], store, quick=False)[0].state in (
        "finished",
        "stale",
    )  # stale if an older version of the code wrote a kept store
    return {
        "open the store": seconds(Store),
        "search: all trainings": seconds(lambda: store.search("trainings", "full")),
        "search: one key": seconds(lambda: store.search("trainings", "full", f"tags.key = '{key_of(7)}'")),
        "find a training": seconds(lambda: store.find_training(key_of(7), "full")),
        "miss a training": seconds(lambda: store.find_training("none", "full")),
        "plan a study": seconds(lambda: plan([study], store, quick=False)),
        "compare a study": seconds(lambda: from_store(store, [STUDY])),
        "close_orphans": seconds(store.close_orphans),
        "doctor": seconds(lambda: list(examine()), times=1),
    }


def main() -> None:
    """Make the store, time the operations and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.root or Path(scratch)
        here = Path(__file__).resolve().parents[1]
        root.mkdir(exist_ok=True)
        (root / ".workbench").touch()
        for name in ("notebooks", "studies"):
            if not (root / name).exists():
                (root / name).symlink_to(here / name)
        os.environ["WORKBENCH_ROOT"] = str(root)
        start = time.perf_counter()
        if not (root / "mlruns" / "mlflow.db").exists():
            make(args.runs)
        print(f"{args.runs} trainings, {EXECUTIONS} executions; made in {time.perf_counter() - start:.0f} s")
        timings = measured(args.runs)
        print(f"{'seconds':24}{'wall':>8}{'own':>8}")
        for what, (wall, cpu) in timings.items():
            print(f"{what:24}{wall:8.3f}{cpu:8.3f}")
        slow = [what for what, (_, cpu) in timings.items() if cpu > MAY_TAKE and what != "doctor"]
        sys.exit(f"These operations take longer than {MAY_TAKE:g} s: {', '.join(slow)}." if slow else 0)


if __name__ == "__main__":
    main()
