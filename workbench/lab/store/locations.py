"""Where the runs are: mlruns/ under the root, and the address of the store; whether the store can be one of ours."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.lab.store.database import as_path
from workbench.paths import root

PATIENCE = 5.0  # seconds for a server's first answer


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the absolute sqlite file under mlruns/."""
    return os.environ.get("MLFLOW_TRACKING_URI") or default_uri()


def default_uri() -> str:
    """The sqlite file beside the runs' files, whatever MLFLOW_TRACKING_URI says."""
    return f"sqlite:///{runs_folder() / 'mlflow.db'}"


def runs_folder() -> Path:
    """mlruns/ under the root, made when it is not there."""
    folder = root() / "mlruns"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise WorkbenchError(
            f"cannot make {folder} ({error.strerror}): choose a writable place with WORKBENCH_ROOT."
        ) from error
    return folder


def files_of(experiment: str) -> Path:
    """The folder with the files of an experiment's runs, where the store is a database."""
    return runs_folder() / "artifacts" / experiment


def refuse_silent(uri: str) -> None:
    """Raises: WorkbenchError for a server that does not answer, for which MLflow would wait minutes."""
    parts = urllib.parse.urlsplit(uri)
    plain = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    try:
        urllib.request.urlopen(plain, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # somebody answers
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise WorkbenchError(
            f"nobody answers at MLFLOW_TRACKING_URI (={plain}) ({getattr(error, 'reason', None) or error}): start "
            "the server, or unset the variable to use the file under mlruns/."
        ) from error


def refuse_moved(experiment: str, location: str) -> None:
    """Raises: WorkbenchError where a store under mlruns/ has an experiment's files elsewhere, whence it was moved or
    copied: new files would go there."""
    lies = Path(as_path(location)).resolve() if location.startswith("file:") else None
    if lies is not None and lies != files_of(experiment).resolve():
        raise WorkbenchError(
            f"the store {runs_folder()} was moved or copied: it has its files at {lies.parent.parent}. "
            "`./run doctor --fix` gives it its new place."
        )
