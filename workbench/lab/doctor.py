"""Find what a crash left behind, and mend it on request.

A crash may leave processes, runs, points, trials and files.
A check yields findings, and a finding changes nothing until its `mend` is called. So a dry run and a repair go through
the same code. Nothing that a living process uses is touched: not its runs, and no checkpoint or trial under its lock.
Lock files stay: a free one does no harm, and removing it can. Files that may be the only copy of a result are set
aside, not removed.
"""

import functools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from workbench.errors import WorkbenchError
from workbench.lab.executors.lifetime import Family, is_held, strays, whoami
from workbench.lab.store.client import EXPERIMENTS, Store
from workbench.lab.store.database import Database, as_path, damage_of, is_database, is_made, sqlite_file
from workbench.lab.store.edits import Edits, edits_of
from workbench.lab.store.locations import (
    ASIDE,
    default_uri,
    files_of,
    folder_of,
    run_folders,
    runs_folder,
    tracking_uri,
)
from workbench.lab.store.retention import bytes_of
from workbench.lab.store.runs import Run
from workbench.lab.store.stored_results import examined
from workbench.outcomes import DIVERGED, FAILED, FINISHED
from workbench.paths import root

CLOSED = ("FINISHED", "FAILED", "KILLED")  # statuses of runs that no process writes
UPLOADING = ".artifact.uploading.*"  # what MLflow calls a file that it is still writing


@dataclass(frozen=True)
class Finding:
    """One damage.

    Attributes:
        kind: The row of the summary table that counts it.
        what: The damage and its place.
        cure: What mends it, such as "close it as KILLED". Without `mend`, what you can do.
        mend: Mends it. None: the program cannot.
        size: Bytes that mending frees.
    """

    kind: str
    what: str
    cure: str
    mend: Callable[[], object] | None = None
    size: int = 0


def examine(moved: bool = False) -> Iterator[Finding]:
    """Yield every damage in the order of mending: an early repair may allow a later one.

    Args:
        moved: You moved or copied the store to this place, and nobody uses it.
    """
    lost = strays("workbench.pool.worker", root())
    identities = {identity for pid in lost if (identity := _identity(pid))}
    for pid, command in lost.items():
        yield Finding(
            "processes",
            f"process {pid} still runs, but its launcher is gone ({command[:100]})",
            "end it",
            functools.partial(_end, pid),
        )
    damages = list(_damaged_files())
    yield from damages
    if not damages:
        yield from _opened(identities, moved)


def _damaged_files() -> Iterator[Finding]:
    """Yield the SQLite files that SQLite finds damaged. Nothing else is examined then."""
    from workbench.lab.jobs.search import storage_uri

    cures = {
        tracking_uri(): "put a copy in its place, or rescue its rows with `sqlite3 FILE .recover | sqlite3 NEW`",
        storage_uri(): "move it away: the next start of a study searches again, and finds its trainings",
    }
    for uri, cure in cures.items():
        if (file := sqlite_file(uri)) is not None and (damage := damage_of(file)):
            yield Finding("databases", f"{file} is damaged ({damage[:100]})", f"end what uses it, then {cure}")


def _opened(identities: set[str], moved: bool) -> Iterator[Finding]:
    file = sqlite_file(tracking_uri())
    if file is None or is_made(file) or file.is_symlink() or run_folders():  # otherwise `Store` would create one
        try:
            store = Store(anywhere=True)
        except WorkbenchError as error:
            problem, _, cure = str(error).partition(". ")
            yield Finding("store", problem, cure.removesuffix("."))
            return
        yield from _store(store, file is not None, identities, moved)
    yield from _trials()


def _store(store: Store, local: bool, lost: set[str], moved: bool) -> Iterator[Finding]:
    yield from _trash(store)
    folders = run_folders() if local else {}  # before the runs, because a run exists before its folder
    runs = [(name, run) for name in EXPERIMENTS for run in store.runs(name)]
    alive = {r.id for _, r in runs if r.status == "RUNNING" and _lives(store, r, lost)}
    database = Database(store.uri) if is_database(store.uri) else None
    try:
        if local:
            places = list(_moved(database, bool(alive), moved))
            yield from places
            local = all(place.mend for place in places)  # otherwise the files are at another place, not lost
        yield from _runs(store, runs, alive, local)
        if local:
            yield from _replays(store, database, [run for name, run in runs if name == "checks"])
        if database is not None:
            yield from _points(database, runs, alive)
        if local:
            yield from _checkpoints(runs)
            if tracking_uri() == default_uri():  # other stores share this folder, and do not know these runs
                yield from _artifacts(folders, database.run_ids(), alive)
    finally:
        if database is not None:
            database.close()


# ---- the store


def _trash(store: Store) -> Iterator[Finding]:
    """Yield experiments in MLflow's trash, and trainings there whose search still counts them."""
    from workbench.lab.jobs.search import trials_of

    for name in store.deleted_experiments:
        what = f"the experiment {name} was deleted in MLflow, with all its runs"
        yield Finding("experiments", what, "restore them", functools.partial(store.restore_experiment, name))
    deleted = {run.id for mode in ("full", "quick") for run in store.deleted("trainings", mode)}
    for search, number, run_id in trials_of(deleted) if deleted else ():
        what = f"the training of trial {number} of the search '{search}' was deleted in MLflow (run {run_id})"
        cure = "restore it; without it, the next start of the study trains it again"
        yield Finding("trials", what, cure, functools.partial(store.restore, run_id))


def _moved(database: Database, busy: bool, confirmed: bool) -> Iterator[Finding]:
    current_place = runs_folder().as_uri()
    for place, n in database.places(EXPERIMENTS).items():
        folder = Path(as_path(place))
        if place == current_place or not place.startswith("file:") or folder.resolve() == runs_folder():
            continue
        what = f"the database says that {n} experiments and runs have their files at {folder}, "
        what += f"but the store is at {runs_folder()}"
        if not (runs_folder() / "artifacts").is_dir():
            yield Finding("places", what, "move or copy its folder artifacts/ into the store")
        elif (folder / "mlflow.db").is_file() and not confirmed:
            yield Finding("places", what, "the old place has a store too: add --moved to keep this one as a copy")
        elif busy and not confirmed:
            yield Finding("places", what, "runs have status RUNNING: wait for their end, or add --moved if none runs")
        else:
            cure = f"write the new place into {Path(database.uri).name} and keep a copy of the old file"
            yield Finding("places", what, cure, functools.partial(_move, database, place, current_place))


def _move(database: Database, old: str, new: str) -> None:
    database.backup(runs_folder() / f"mlflow.db.{time.strftime('%Y%m%d-%H%M%S')}.before-move")
    database.move(old, new)


def _runs(store: Store, runs: list[tuple[str, Run]], alive: set[str], local: bool) -> Iterator[Finding]:
    """Yield RUNNING runs without a process, FINISHED runs without their files, and edited trainings."""
    finished = {(run.tags.get("mode"), run.tags.get("key")) for _, run in runs if run.status == "FINISHED"}
    for name, run in runs:
        run_id, what = run.id, f"{name}: {run.name} ({run.id})"
        checked = local and run_id not in alive
        result, damage = examined(name, run, _folder(name, run_id)) if checked else (None, None)
        edits = edits_of(name, run, result) if result is not None and damage is None else None
        if edits is not None and (edits.status is None or (run.tags.get("mode"), run.tags.get("key")) not in finished):
            mend = functools.partial(_undo, store, run_id, edits)
            yield Finding("edits", f"{what} differs from its result in {edits}", "take them from the result", mend)
        elif run.status not in CLOSED and run_id not in alive:
            mend = functools.partial(_close, store, run_id, "KILLED", "its process ended before it did")
            yield Finding("runs", f"{what} is {run.status}, but no process runs it", "close it as KILLED", mend)
        elif run.status == "FINISHED" and damage is not None:
            mend = functools.partial(_close, store, run_id, "FAILED", damage)
            cure = "set it aside as FAILED, so it runs again"
            yield Finding("results", f"{what} is FINISHED, but {damage}", cure, mend)


def _replays(store: Store, database: Database, checks: list[Run]) -> Iterator[Finding]:
    """Yield replays among the checks, where the first edition kept them."""
    for run in checks:
        if "replay_of" in run.tags and run.status != "RUNNING":
            yield Finding(
                "replays",
                f"checks: {run.name} ({run.id}) is a replay",
                "move it into the experiment replays",
                functools.partial(_move_replay, store, database.uri, run.id),
            )


def _move_replay(store: Store, uri: str, run_id: str) -> None:
    """Move the files first: after an interruption the run is still a check, and moves again."""
    old, new = (files_of(experiment) / run_id for experiment in ("checks", "replays"))
    if old.is_dir() and not new.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, new)
    database = Database(uri)
    try:
        database.move_run(run_id, store.experiment_id("replays", "full"), f"{new.as_uri()}/artifacts")
    finally:
        database.close()


def _undo(store: Store, run_id: str, edits: Edits) -> None:
    """Give a training the tags, the metrics and the status of its result again."""
    if edits.metrics and is_database(store.uri):
        database = Database(store.uri)
        try:
            database.drop_points_from(run_id, list(edits.metrics), edits.step)
        finally:
            database.close()
    store.set_tags(run_id, **edits.tags)
    store.log_metrics(run_id, edits.metrics, edits.step)
    if edits.status is not None:
        store.close(run_id, "FINISHED")


def _close(store: Store, run_id: str, status: str, cause: str) -> None:
    store.set_tags(run_id, outcome=FAILED, cause=cause)
    store.close(run_id, status)


def _points(database: Database, runs: list[tuple[str, Run]], alive: set[str]) -> Iterator[Finding]:
    names = {run.id: f"{name}: {run.name}" for name, run in runs}
    for run_id, n in database.points_twice().items():
        if run_id in names and run_id not in alive:
            yield Finding(
                "points",
                f"{names[run_id]} ({run_id}) has {n} points twice",
                "keep the last of each",
                functools.partial(database.drop_points_twice, run_id),
            )


def _lives(store: Store, run: Run, lost: set[str]) -> bool:
    return run.process not in lost and store.is_written(run)


# ---- trials, processes


def _trials() -> Iterator[Finding]:
    from workbench.lab.jobs.search import abandoned_trials, give_up_trial

    try:
        abandoned = abandoned_trials()
    except WorkbenchError as error:
        yield Finding("searches", f"cannot read the searches: {error}", "mend the database yourself")
        return
    for search, number in abandoned:
        yield Finding(
            "trials",
            f"trial {number} of the search '{search}' is RUNNING, but no process runs it",
            "mark it FAIL, which frees its slot",
            functools.partial(give_up_trial, search, number),
        )


def _end(pid: int) -> None:
    if psutil.pid_exists(pid):
        Family(pid).end()


def _identity(pid: int) -> str | None:
    try:
        return whoami(pid)
    except psutil.Error:
        return None


# ---- files


def _checkpoints(runs: list[tuple[str, Run]]) -> Iterator[Finding]:
    """Yield the checkpoints of trainings that went through all their steps, and incomplete checkpoints.

    Checkpoints of diverged trainings are kept for replays. Killed trainings continue from theirs.
    """
    outcomes: dict[str, set[str]] = {}
    for name, run in runs:
        tags = run.tags
        if name.startswith("trainings") and run.status == "FINISHED":
            outcomes.setdefault(f"{tags.get('mode')}-{tags.get('key', '')[:32]}", set()).add(tags.get("outcome", ""))
    for folder in sorted((runs_folder() / "checkpoints").glob("*/")):
        lock = runs_folder() / "locks" / f"{folder.name}.lock"
        if is_held(lock):
            continue
        ended_as = outcomes.get(folder.name, set())
        if ended_as & set(FINISHED) and DIVERGED not in ended_as:
            yield _removal("checkpoints", folder, "belongs to a training that went through all its steps", lock)
            continue
        for part in sorted(folder.glob(".*-*")):  # .part-<pid>-<step> and .<pid>-<name>
            pid = part.name.removeprefix(".part-").lstrip(".").partition("-")[0]
            if not (pid.isdigit() and psutil.pid_exists(int(pid))):
                yield _removal("halves", part, "is incomplete, because its process ended while it wrote", lock)


def _artifacts(folders: dict[str, list[Path]], known: set[str], alive: set[str]) -> Iterator[Finding]:
    unknown = [f for run_id, each in folders.items() if run_id not in known for f in each]
    if unknown and not known:
        size = sum(bytes_of(folder) for folder in unknown)
        what = f"{runs_folder() / 'artifacts'} holds files of {len(unknown)} runs, but the database contains no run"
        cure = "restore the database if it was replaced, or remove the files"
        yield Finding("files of no run", what, cure, None, size)
        return
    for folder in unknown:
        what = f"{folder} belongs to no run ({bytes_of(folder) / 2**20:.1f} MiB)"
        mend = functools.partial(_set_aside, folder)
        yield Finding("files of no run", what, f"move it into {runs_folder() / ASIDE}, for you to remove", mend)
    for run_id, each in folders.items():
        if run_id in known - alive:
            for file in sorted(file for folder in each for file in folder.rglob(UPLOADING)):
                yield _removal("halves", file, "is incomplete, because its process ended while it wrote")


def _removal(kind: str, place: Path, why: str, lock: Path | None = None) -> Finding:
    return Finding(
        kind,
        f"{place} {why} ({bytes_of(place) / 2**20:.1f} MiB)",
        "remove it",
        functools.partial(_remove, place, lock),
        bytes_of(place),
    )


def _set_aside(folder: Path) -> None:
    """Move a folder away: it may belong to a run of another database with the same root."""
    place = runs_folder() / ASIDE / folder.parent.name / folder.name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)


def _remove(place: Path, lock: Path | None) -> None:
    if lock is None:
        return shutil.rmtree(place) if place.is_dir() else place.unlink()
    folder_of("locks")
    with filelock.FileLock(lock, timeout=0):  # held: a training has begun since
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def _folder(experiment: str, run_id: str) -> Path:
    """Return where a run's files are now, whatever the database says."""
    return files_of(experiment) / run_id / "artifacts"
