"""Reads the files of runs, and checks that their paths stay within the run."""

import io
import tempfile
import urllib.parse
from pathlib import Path

import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from workbench.errors import WorkbenchError
from workbench.lab.store.runs import as_folder
from workbench.lab.store.stored_results import RESULT, StoredResult, parse_result


class RunFiles:
    """The part of the store that writes and reads files of runs."""

    _client: MlflowClient

    def log_table(self, run_id: str, table: pd.DataFrame, name: str) -> None:
        """Store a table as Parquet, which is exact, and as CSV, which the run's page shows."""
        within_run(name)
        with tempfile.TemporaryDirectory() as folder:
            for suffix, write in ((".parquet", table.to_parquet), (".csv", table.to_csv)):
                write(Path(folder) / f"{name}{suffix}", index=False)
            self._client.log_artifacts(run_id, folder, "tables")

    def read_table(self, run_id: str, name: str) -> pd.DataFrame:
        """Read a table that `log_table` stored.

        Raises:
            WorkbenchError: If the run has no readable table of this name.
        """
        content = self._read_bytes(run_id, f"tables/{name}.parquet")
        try:
            return pd.read_parquet(io.BytesIO(content))
        except (OSError, pa.ArrowException) as error:
            raise unreadable(run_id, f"table {name}") from error

    def log_figure(self, run_id: str, figure, name: str) -> None:
        """Store a matplotlib figure as PNG and SVG."""
        within_run(name)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in (".png", ".svg"):
                figure.savefig(Path(folder) / f"{name}{suffix}", dpi=160, bbox_inches="tight")
            self._client.log_artifacts(run_id, folder, "figures")

    def log_text(self, run_id: str, text: str, path: str) -> None:
        """Store a text as a file of the run."""
        self._client.log_text(run_id, text, within_run(path))

    def log_file(self, run_id: str, file: Path, folder: str) -> None:
        """Store a copy of a file in a folder of the run."""
        self._client.log_artifact(run_id, str(file), within_run(folder))

    def read_text(self, run_id: str, path: str) -> str:
        """Read a text file of a run.

        Raises:
            WorkbenchError: If the run has no readable file at this path.
        """
        try:
            return self._read_bytes(run_id, path).decode()
        except UnicodeDecodeError as error:
            raise unreadable(run_id, f"file {path}") from error

    def read_result(self, run_id: str) -> StoredResult:
        """Read the result of a training.

        Raises:
            DamagedResult: If the file holds no result.
            WorkbenchError: If the run has no such file.
        """
        return parse_result(self._read_bytes(run_id, RESULT), run_id)

    def artifacts(self, run_id: str) -> list[str]:
        """Return the paths of all files of a run, sorted."""
        paths, folders = [], [None]
        while folders:
            for item in self._client.list_artifacts(run_id, folders.pop()):
                (folders if item.is_dir else paths).append(item.path)
        return sorted(paths)

    def _read_bytes(self, run_id: str, path: str) -> bytes:
        """Read a file of a run.

        Raises:
            WorkbenchError: If the run has no readable file at this path, or the path leads out of the run.
        """
        within_run(path)
        files_uri = self._client.get_run(run_id).info.artifact_uri
        if (run_folder := as_folder(files_uri)) is not None:
            refuse_link(run_folder, path)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(run_id, path, folder)).read_bytes()
            except (OSError, MlflowException) as error:
                raise unreadable(run_id, f"file {path}") from error


def unreadable(run_id: str, what: str) -> WorkbenchError:
    """Make the error for a file of a run that cannot be read. The caller raises it."""
    return WorkbenchError(
        f"run {run_id} has no readable {what}. Check its name, or run `./run doctor` to list lost files."
    )


def within_run(path: str) -> str:
    """Return the path of a run's file unchanged, if it is within the run.

    Raises:
        WorkbenchError: If the path is empty, absolute, or contains `..` or a backslash, also URL-encoded.
    """
    for text in (path, urllib.parse.unquote(path)):
        if not text.strip("/") or text.startswith(("/", "~", "file:")) or "\\" in text or ".." in text.split("/"):
            raise WorkbenchError(
                f"`{path}` must be a path within the run. Use a relative path without .., such as tables/mine.csv."
            )
    return path


def refuse_link(folder: Path, path: str) -> None:
    """Refuse a link that leads out of a run's folder.

    MLflow follows links when it reads.

    Raises:
        WorkbenchError: If the path leads out of the folder.
    """
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise WorkbenchError(f"{folder / path} is a link that leads out of the run. Remove the link.")
