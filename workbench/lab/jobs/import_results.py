"""Import the results of a detached run into the store, as if the trainings had run here.

An import skips each training whose key is finished in the store. So you may import a folder twice, or during its run:
only new trainings are added. Nothing in the folder is executed.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from workbench import outcomes
from workbench.errors import WorkbenchError
from workbench.files import local_path
from workbench.lab.jobs.job_run import log_measured
from workbench.lab.store.client import Store
from workbench.lab.store.closing import closing
from workbench.lab.store.locks import locked
from workbench.training import code_hash, training_key
from workbench.training.detached.records import RESULTS, Record, numbered, read_records
from workbench.training.detached.tables import tables_of
from workbench.training.detached.transport import unpacked


@dataclass
class Imported:
    """Result of an import.

    Attributes:
        runs: Ids of the new runs.
        known: Number of trainings that the store had already.
        failed: Name and cause of each training that failed on the node and did not finish later.
        damaged: Place and cause of each damaged line or table.
        other_code: Number of new runs of other code than this checkout's. No study of this checkout uses them.
    """

    runs: list[str] = field(default_factory=list)
    known: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    other_code: int = 0

    def __str__(self) -> str:
        text = f"{len(self.runs)} imported, {self.known} known already, {len(self.damaged)} damaged"
        return text + (f", {len(self.failed)} failed on the node" if self.failed else "")


def import_results(
    source: str | Path, store: Store, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Imported:
    """Make a FINISHED run of each training that the store does not know.

    Args:
        source: The folder of a detached run, or the tar that `--pack` made of it.
        store: Where the runs go.
        on_progress: Called with the number of trainings done and their total.

    Raises:
        WorkbenchError: If the folder or tar has no results, or the tar has links or members outside the folder.
    """
    path = local_path(source).resolve()
    with unpacked(path) if path.is_file() else contextlib.nullcontext(path) as folder:
        return _import_folder(folder, store, on_progress)


def _import_folder(folder: Path, store: Store, on_progress: Callable[[int, int], None]) -> Imported:
    if not folder.is_dir() or not numbered(folder, RESULTS):
        raise WorkbenchError(
            f"{folder} must be a folder with {RESULTS}. Give the folder or tar of a detached run, "
            "from `python -m workbench.training`."
        )
    imported, records, failed = Imported(), {}, {}
    for place, record in read_records(folder):
        cause = record if isinstance(record, WorkbenchError) else _contradiction(record)
        if cause:
            imported.damaged.append(f"{place}: {cause}")
        else:
            (records if record.result.outcome in outcomes.RESULTS else failed).setdefault(record.result.key, record)
    imported.failed = [f"{r.result.config.name}: {r.result.cause}" for key, r in failed.items() if key not in records]
    known = {mode: _finished_keys(store, mode) for mode in {record.mode for record in records.values()}}
    fresh = [record for record in records.values() if record.result.key not in known[record.mode]]
    imported.known = len(records) - len(fresh)
    whole = [record for record in fresh if _has_whole_tables(folder, record, imported)]  # before the first run opens
    for done, record in enumerate(whole):
        on_progress(done, len(whole))
        with locked(store.lock(f"{record.mode}-{record.result.key}"), record.result.config.name):
            if store.find_training(record.result.key, record.mode) is not None:
                imported.known += 1
            else:
                imported.runs.append(_as_run(folder.name, record, tables_of(folder, record), store))
                imported.other_code += record.result.code != code_hash()
    on_progress(len(whole), len(whole))
    return imported


def _has_whole_tables(folder: Path, record: Record, imported: Imported) -> bool:
    """Read the tables of a training. If one is damaged, add its cause to the damages and return False."""
    try:
        tables_of(folder, record)
    except WorkbenchError as error:
        imported.damaged.append(f"{record.result.config.name}: {error}")
        return False
    return True


def _finished_keys(store: Store, mode: str) -> set[str]:
    """Return the keys of all finished trainings, with one query."""
    runs = store.search("trainings", mode, "attributes.status = 'FINISHED'")
    return {run.tags.get("key", "") for run in runs if run.tags.get("outcome") in outcomes.RESULTS}


def _contradiction(record: Record) -> str | None:
    """Return an error if a line's key does not match its configuration and data."""
    result = record.result
    checkable = result.code == code_hash() and result.config.weights is None
    if checkable and training_key(result.config, result.data_digest) != result.key:
        return (
            f"its key {result.key[:12]} does not match its configuration and data. Restore the line as it was written."
        )
    return None


def _as_run(folder: str, record: Record, tables: dict[str, pd.DataFrame], store: Store) -> str:
    result = record.result
    tags = {"role": record.role, "arm": record.arm, "owner": record.owner}
    run_id = store.open_training(result.config, result.key, record.mode, **tags, started=record.started)
    with closing(store, run_id, "not imported: "):
        store.set_tags(run_id, imported=folder)
        store.log_rows(run_id, result.history)
        for name, table in tables.items():
            log_measured(store, run_id, name, table)
        if record.study:
            store.tag_study(run_id, record.study, record.owner or folder)
        store.finish_training(run_id, result, record.ended)
    return run_id
