"""Locations of the store: mlruns/ under the root, the tracking URI, and checks of both."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from workbench import environment
from workbench.errors import WorkbenchError
from workbench.lab.store.database import as_path, sqlite_uri
from workbench.paths import root

EXPERIMENTS = ("studies", "trainings", "evaluations", "checks", "replays", "studies-quick", "trainings-quick")
ASIDE = "set-aside"  # folder under mlruns/ for files that belong to no run
PATIENCE = 5.0  # seconds for a server's first answer


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI, else the URI of the sqlite file under mlruns/."""
    return environment.text("MLFLOW_TRACKING_URI") or default_uri()


def default_uri() -> str:
    """Return the URI of the sqlite file under mlruns/, whatever MLFLOW_TRACKING_URI says."""
    return sqlite_uri(runs_folder() / "mlflow.db")


def runs_folder() -> Path:
    """Return mlruns/ under the root, and make it if it is missing.

    Raises:
        WorkbenchError: If the folder cannot be made.
    """
    folder = root() / "mlruns"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WorkbenchError(
            f"cannot make {folder} ({error.strerror}). Choose a writable folder with WORKBENCH_ROOT."
        ) from error
    return folder


def folder_of(name: str) -> Path:
    """Return a folder under mlruns/, and make it if it is missing.

    Raises:
        WorkbenchError: If a file blocks it, or the disk refuses it.
    """
    folder = runs_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkbenchError(
            f"{folder} must be a folder ({error.strerror}). Move away the file that blocks it, or make it writable."
        ) from error
    return folder


def refuse_blocked(names: Iterable[str]) -> None:
    """Refuse files that have the names of folders under mlruns/. Trainings would fail at their end.

    Raises:
        WorkbenchError: If one of the names is a file, or a link to nothing.
    """
    for place in (runs_folder() / name for name in names):
        if os.path.lexists(place) and not place.is_dir():
            raise WorkbenchError(f"{place} must be a folder, but is a file or a broken link. Move it away.")


def run_folders() -> dict[str, list[Path]]:
    """Return the folders with files of runs, by run id. A moved run may have two."""
    folders: dict[str, list[Path]] = {}
    for name in EXPERIMENTS:
        for folder in files_of(name).glob("*/"):
            folders.setdefault(folder.name, []).append(folder)
    return folders


def files_of(experiment: str) -> Path:
    """Return the folder for the files of an experiment's runs, if the store is a database."""
    return runs_folder() / "artifacts" / experiment


def refuse_silent(uri: str) -> None:
    """Refuse a server that does not answer. MLflow would wait for it for minutes.

    Raises:
        WorkbenchError: If the server does not answer within `PATIENCE` seconds.
    """
    parts = urllib.parse.urlsplit(uri)
    plain = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        urllib.request.urlopen(plain, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # an error page is an answer
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise WorkbenchError(
            f"no server answers at MLFLOW_TRACKING_URI={plain} ({getattr(error, 'reason', None) or error}). "
            "Start the server, or unset the variable to use the file under mlruns/."
        ) from error


def refuse_moved(experiment: str, location: str) -> None:
    """Refuse a moved or copied store under mlruns/.

    Its new files would go to the old folder.

    Args:
        experiment: Name of the experiment.
        location: URI of its files in the database.

    Raises:
        WorkbenchError: If the location is not under the current mlruns/.
    """
    stored = Path(as_path(location)).resolve() if location.startswith("file:") else None
    if stored is not None and stored != files_of(experiment).resolve():
        raise WorkbenchError(
            f"the store {runs_folder()} was moved or copied, and its database still points to {stored.parent.parent}. "
            "Run `./run doctor --fix` to update the paths."
        )
