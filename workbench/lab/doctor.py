"""What a crash left behind, found and, when asked, mended: processes, runs, points, trials and files.

A check yields findings, and a finding mends nothing until it is told to; so the dry run and the mending take the same
way. Nothing that a living process uses is touched: its runs, and the checkpoints and trials under a lock that it holds.
Lock files stay: one that nobody holds does no harm, and removing one can. What may be all there is of a result is
not removed but set aside.
"""

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import psutil

from workbench.errors import WorkbenchError
from workbench.lab.executors.lifetime import Family, is_alive, is_held, strays, whoami
from workbench.lab.store.client import EXPERIMENTS, Store
from workbench.lab.store.database import Database, as_path, is_database
from workbench.lab.store.locations import default_uri, files_of, runs_folder, tracking_uri
from workbench.lab.store.retention import bytes_of
from workbench.lab.store.runs import Run
from workbench.paths import root

UPLOADING = ".artifact.uploading.*"  # what MLflow calls a file that it is still writing
ASIDE = "set-aside"  # under mlruns/: the files that belong to no run


@dataclass(frozen=True)
class Finding:
    """Something wrong: its kind, what and where, what mends it ("close it as KILLED"), and how. `mend` is None where
    nothing here can, and `cure` then says what a person can do."""

    kind: str
    what: str
    cure: str
    mend: Callable[[], object] | None = None
    size: int = 0  # bytes that mending sets free


def examine(moved: bool = False) -> Iterator[Finding]:
    """Everything that is wrong, in the order in which it is mended: who is mended first may free what comes later."""
    lost = strays("workbench.pool.worker", root())
    identities = {identity for pid in lost if (identity := _identity(pid))}
    for pid, command in lost.items():
        yield Finding(
            "processes",
            f"process {pid} goes on though its launcher is gone ({command[:100]})",
            "end it",
            functools.partial(_end, pid),
        )
    file = Database(tracking_uri()).file if is_database(tracking_uri()) else None
    if file is None or file.is_file():  # else there is no store yet, and a look makes none
        yield from _store(Store(anywhere=True), file is not None, identities, moved)
    yield from _trials()


def _store(store: Store, local: bool, lost: set[str], moved: bool) -> Iterator[Finding]:
    folders = _run_folders() if local else {}  # before the runs: a run is there before its folder
    runs = [(name, run) for name in EXPERIMENTS for run in store.runs(name)]
    alive = {r.id for _, r in runs if r.status == "RUNNING" and _lives(r, lost)}
    database = Database(store.uri) if is_database(store.uri) else None
    try:
        if local:
            places = list(_moved(database, bool(alive), moved))
            yield from places
            local = all(place.mend for place in places)  # else the files are somewhere else, and not gone
        yield from _runs(store, runs, alive, local)
        if local:
            yield from _replays(store, database, [run for name, run in runs if name == "checks"])
        if database is not None:
            yield from _points(database, runs, alive)
        if local:
            yield from _checkpoints(runs)
            if tracking_uri() == default_uri():  # another store cannot know whose files these are
                yield from _artifacts(folders, database.run_ids(), alive)
    finally:
        if database is not None:
            database.close()


# ---- the store


def _moved(database: Database, busy: bool, sure: bool) -> Iterator[Finding]:
    here = runs_folder().as_uri()
    for place, n in database.places(EXPERIMENTS).items():
        folder = Path(as_path(place))
        if place == here or not place.startswith("file:") or folder.resolve() == runs_folder():
            continue
        what = f"{n} experiments and runs have their files at {folder}, but the store is at {runs_folder()}"
        if not (runs_folder() / "artifacts").is_dir():
            yield Finding("places", what, "bring its folder artifacts/ here too")
        elif (folder / "mlflow.db").is_file() and not sure:
            yield Finding("places", what, "there is a store there too: say --moved if this one is a copy to keep")
        elif busy and not sure:
            yield Finding("places", what, "runs are going on: wait for their end, or say --moved if that is not so")
        else:
            cure = f"put the new place into {Path(database.uri).name}, of which a copy is kept"
            yield Finding("places", what, cure, functools.partial(_move, database, place, here))


def _move(database: Database, old: str, new: str) -> None:
    database.backup(runs_folder() / f"mlflow.db.{time.strftime('%Y%m%d-%H%M%S')}.before-move")
    database.move(old, new)


def _runs(store: Store, runs: list[tuple[str, Run]], alive: set[str], local: bool) -> Iterator[Finding]:
    """RUNNING though nobody runs them, and FINISHED without what a finished run has."""
    for name, run in runs:
        run_id, what = run.id, f"{name}: {run.name} ({run.id})"
        if run.status == "RUNNING" and run_id not in alive:
            mend = functools.partial(_close, store, run_id, "KILLED", "its process ended before it did")
            yield Finding("runs", f"{what} says RUNNING though nobody runs it", "close it as KILLED", mend)
        elif run.status == "FINISHED" and local and not _whole(name, run):
            mend = functools.partial(_close, store, run_id, "FAILED", "its files are gone")
            yield Finding(
                "results", f"{what} says FINISHED but its files are gone", "mark it FAILED, to be run again", mend
            )


def _replays(store: Store, database: Database, checks: list[Run]) -> Iterator[Finding]:
    """Replays among the checks, where the first edition kept them."""
    for run in checks:
        if "replay_of" in run.tags and run.status != "RUNNING":
            yield Finding(
                "replays",
                f"checks: {run.name} ({run.id}) is a replay",
                "move it into the experiment replays",
                functools.partial(_move_replay, store, database.uri, run.id),
            )


def _move_replay(store: Store, uri: str, run_id: str) -> None:
    """Moves the files first: whoever is interrupted between the two finds the run among the checks again."""
    old, new = (files_of(experiment) / run_id for experiment in ("checks", "replays"))
    if old.is_dir() and not new.exists():
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(old, new)
    database = Database(uri)
    try:
        database.move_run(run_id, store.experiment_id("replays", "full"), f"{new.as_uri()}/artifacts")
    finally:
        database.close()


def _whole(experiment: str, run: Run) -> bool:
    """Whether the files are there without which a run cannot be reused."""
    folder = _folder(experiment, run.id)
    if not run.files_uri.startswith(("file:", "/")):  # on a server
        return True
    if experiment.startswith("trainings"):
        try:
            return isinstance(json.loads((folder / "result.json").read_text()), dict)
        except (OSError, ValueError):
            return False
    if experiment.startswith("studies") and "key" in run.tags:  # the launcher's; by hand there need be no files
        return (folder / "environment.txt").is_file()
    return True


def _close(store: Store, run_id: str, status: str, cause: str) -> None:
    store.set_tags(run_id, outcome="failed", cause=cause)
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


def _lives(run: Run, lost: set[str]) -> bool:
    process = run.tags.get("process", "")
    return process not in lost and is_alive(process)


# ---- trials, processes


def _trials() -> Iterator[Finding]:
    from workbench.lab.jobs.search import abandoned_trials, give_up_trial

    try:
        abandoned = abandoned_trials()
    except WorkbenchError as error:
        yield Finding("searches", f"the searches are out of reach: {error}", "look at it by hand")
        return
    for search, number in abandoned:
        yield Finding(
            "trials",
            f"trial {number} of the search '{search}' says RUNNING though nobody runs it",
            "mark it FAIL, which gives its slot back",
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
    """Of trainings that are complete, and halves that were being written. Those of diverged ones are kept on purpose,
    and those of killed ones are what they go on from."""
    outcomes: dict[str, set[str]] = {}
    for name, run in runs:
        tags = run.tags
        if name.startswith("trainings") and run.status == "FINISHED":
            outcomes.setdefault(f"{tags.get('mode')}-{tags.get('key', '')[:32]}", set()).add(tags.get("outcome", ""))
    for folder in sorted((runs_folder() / "checkpoints").glob("*/")):
        lock = runs_folder() / "locks" / f"{folder.name}.lock"
        if is_held(lock):
            continue
        had = outcomes.get(folder.name, set())
        if "complete" in had and "diverged" not in had:
            yield _removal("checkpoints", folder, "is of a training that is complete", lock)
            continue
        for part in sorted(folder.glob(".*-*")):  # .part-<pid>-<step> and .<pid>-<name>
            pid = part.name.removeprefix(".part-").lstrip(".").partition("-")[0]
            if not (pid.isdigit() and psutil.pid_exists(int(pid))):
                yield _removal("halves", part, "was being written when its process ended", lock)


def _artifacts(folders: dict[str, list[Path]], known: set[str], alive: set[str]) -> Iterator[Finding]:
    strange = [f for run_id, each in folders.items() if run_id not in known for f in each]
    if strange and not known:
        size = sum(bytes_of(folder) for folder in strange)
        what = f"{runs_folder() / 'artifacts'} holds the files of {len(strange)} runs, and the database knows no run"
        yield Finding("files of no run", what, "was it replaced? put the old one back, or remove them", None, size)
        return
    for folder in strange:
        what = f"{folder} belongs to no run ({bytes_of(folder) / 2**20:.1f} MiB)"
        mend = functools.partial(_set_aside, folder)
        yield Finding("files of no run", what, f"put it into {runs_folder() / ASIDE}, for you to remove", mend)
    for run_id, each in folders.items():
        if run_id in known - alive:
            for file in sorted(file for folder in each for file in folder.rglob(UPLOADING)):
                yield _removal("halves", file, "was being written when its process ended")


def _removal(kind: str, place: Path, why: str, lock: Path | None = None) -> Finding:
    return Finding(
        kind,
        f"{place} {why} ({bytes_of(place) / 2**20:.1f} MiB)",
        "remove it",
        functools.partial(_remove, place, lock),
        bytes_of(place),
    )


def _set_aside(folder: Path) -> None:
    """Of another database that shares this root they may be all there is of a run."""
    place = runs_folder() / ASIDE / folder.parent.name / folder.name
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, place)


def _remove(place: Path, lock: Path | None) -> None:
    if lock is None:
        return shutil.rmtree(place) if place.is_dir() else place.unlink()
    lock.parent.mkdir(exist_ok=True)
    with filelock.FileLock(lock, timeout=0):  # or a training has begun
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def _folder(experiment: str, run_id: str) -> Path:
    """Where a run's files lie now, whatever the database says."""
    return files_of(experiment) / run_id / "artifacts"


def _run_folders() -> dict[str, list[Path]]:
    folders: dict[str, list[Path]] = {}
    for name in EXPERIMENTS:
        for folder in files_of(name).glob("*/"):
            folders.setdefault(folder.name, []).append(folder)
    return folders
