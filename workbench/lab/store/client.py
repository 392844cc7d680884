"""The store of runs: MLflow, by default on sqlite under mlruns/.

The experiments are flat:

- `studies`: one run is one execution of a notebook
- `trainings`: one run is one training
- `studies-quick` and `trainings-quick`: the same in quick mode
- `evaluations`: one run is one network with weights over one set of images
- `checks`: one run is one pre-flight
- `replays`: one run is one replay

The store uses MLflow's client with explicit run ids and never an active run. Each run names the process that writes it
(host, boot, pid), so the store can find runs of dead processes.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pandas as pd
import requests
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from workbench.errors import WorkbenchError, disk_error_message
from workbench.lab.executors.lifetime import is_alive, whoami
from workbench.lab.store import views
from workbench.lab.store.database import with_driver, without_password
from workbench.lab.store.descriptions import as_param, in_words
from workbench.lab.store.experiments import EXPERIMENTS, is_deleted, open_experiments
from workbench.lab.store.locations import runs_folder, tracking_uri
from workbench.lab.store.opening import allow_many_writers, make_tables, refuse_unusable
from workbench.lab.store.run_files import refuse_link, within_run
from workbench.lab.store.runs import Run
from workbench.lab.store.shared_client import SharedClient

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and readers of the store do not need it
    from workbench.training import TrainConfig, TrainResult

logging.getLogger("mlflow").setLevel(logging.WARNING)  # users do not need its notes on making tables
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it raises these errors as well

REUSABLE = ("complete", "diverged")
DEFAULT_PORT = 5000
BATCH = 1000  # MLflow's limit of metrics in one call
ROW_KEYS = ("step", "seconds", "time")  # keys of a history row that are not curves
UNREACHABLE = (MlflowException, SQLAlchemyError, OSError)  # errors of a store that does not answer or is full


def _is_lost(run: Run, path: str) -> bool:
    """Return whether a run's file is lost. Files behind a server never count as lost."""
    return run.folder is not None and not (run.folder / path).is_file()


def _as_run(run: MlflowRun) -> Run:
    info, data = run.info, run.data
    ended = info.end_time / 1000 if info.end_time else None
    return Run(
        info.run_id,
        info.run_name,
        info.status,
        info.start_time / 1000,
        ended,
        info.artifact_uri,
        data.tags,
        data.params,
        data.metrics,
    )


class Store:
    """The store of runs.

    If there is no store yet, opening makes one. This takes a few seconds, once, under a lock.
    """

    def __init__(self, uri: str | None = None, *, anywhere: bool = False):
        """Open the store.

        Args:
            uri: MLflow's tracking URI. None: `MLFLOW_TRACKING_URI`, else the sqlite file under mlruns/.
            anywhere: Open the store even if its database points to another folder. The doctor uses this to fix it.

        Raises:
            WorkbenchError: If the store cannot be opened, or was moved or copied here.
        """
        self.uri = uri or tracking_uri()
        try:
            with filelock.FileLock(runs_folder() / ".store.lock"):
                refuse_unusable(self.uri)
                make_tables(self.uri)
                self._client = SharedClient(tracking_uri=with_driver(self.uri))
                experiments = open_experiments(self._client, self.uri, anywhere=anywhere)
                allow_many_writers(self.uri)
        except (*UNREACHABLE, ImportError) as error:
            cause, uri = str(getattr(error, "orig", None) or error).splitlines()[0], without_password(self.uri)
            cure = "Move the file away to get a new store, or set MLFLOW_TRACKING_URI to another store"
            if "db upgrade" in cause:
                cause, cure = "an older MLflow made it", f"Copy it, then run `mlflow db upgrade {uri}`"
            elif disk_error_message(error):
                cure = "Free some space, or choose another folder with WORKBENCH_ROOT or MLFLOW_TRACKING_URI"
            elif isinstance(error, ImportError):
                cure = "Install the missing package, or set MLFLOW_TRACKING_URI to another store"
            raise WorkbenchError(f"cannot open the store {uri} ({cause}). {cure}.") from error
        self._experiments = {name: experiment.experiment_id for name, experiment in experiments.items()}
        self.deleted_experiments = [name for name, experiment in experiments.items() if is_deleted(experiment)]

    def experiment_id(self, kind: str, mode: str) -> str:
        """Return the id of an experiment.

        Args:
            kind: "studies", "trainings", "evaluations", "checks" or "replays".
            mode: "full", or "quick" for studies and trainings.
        """
        return self._experiments[kind if mode == "full" else f"{kind}-quick"]

    # ---- runs of notebooks

    def open_notebook(
        self, study: str, notebook: str, parameters: dict, mode: str, name: str, tags: dict[str, str]
    ) -> str:
        """Open a run for one execution of a notebook.

        Args:
            study: Name of the study.
            notebook: File name of the notebook.
            parameters: The notebook's parameters. Those that are None are not logged.
            mode: "full" or "quick".
            name: Name of the run.
            tags: Further tags.

        Returns:
            The run id. The run is RUNNING.
        """
        params = [Param(k, as_param(v)) for k, v in parameters.items() if v is not None]
        run = self._client.create_run(
            self.experiment_id("studies", mode),
            run_name=name,
            tags={
                "study": study,
                "mode": mode,
                **_owner_tags(),
                **tags,
                "mlflow.source.name": f"notebooks/{notebook}",
                "mlflow.source.type": "NOTEBOOK",
            },
        )
        self._client.log_batch(run.info.run_id, params=params)
        return run.info.run_id

    def close(self, run_id: str, status: str, ended: float | None = None) -> None:
        """Set the final status of a run.

        Args:
            run_id: The run.
            status: FINISHED, FAILED or KILLED.
            ended: Seconds since 1970. None: now.
        """
        self._client.set_terminated(run_id, status, _milliseconds(ended))

    def status(self, run_id: str) -> str:
        """Return RUNNING, FINISHED, FAILED or KILLED."""
        return self.get(run_id).status

    def get(self, run_id: str) -> Run:
        """Return the run with this id."""
        return _as_run(self._client.get_run(run_id))

    def is_kept(self, run_id: str) -> bool:
        """Return whether the store has this run FINISHED, and not in MLflow's trash."""
        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return info.lifecycle_stage == "active" and info.status == "FINISHED"

    def deleted(self, kind: str, mode: str) -> list[Run]:
        """Return the runs of an experiment that are in MLflow's trash."""
        return self.search(kind, mode, view=ViewType.DELETED_ONLY)

    def restore(self, run_id: str) -> None:
        """Take a run out of MLflow's trash."""
        self._client.restore_run(run_id)

    def restore_experiment(self, name: str) -> None:
        """Take an experiment and all its runs out of MLflow's trash."""
        self._client.restore_experiment(self._experiments[name])

    def set_tags(self, run_id: str, **tags: str) -> None:
        """Set tags of a run and replace earlier values."""
        self._client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def describe(self, run_id: str, text: str) -> None:
        """Set the description at the top of the run's page (Markdown)."""
        self.set_tags(run_id, **{"mlflow.note.content": text})

    # ---- contents of a run

    def log_metrics(self, run_id: str, metrics: dict[str, float], step: int = 0) -> None:
        """Log the finite numbers among `metrics`.

        MLflow would store other numbers as 1.8e308, which makes its charts unreadable.
        """
        self._log(run_id, _points(metrics, step))

    def _log(self, run_id: str, points: list[Metric]) -> None:
        for start in range(0, len(points), BATCH):
            self._client.log_batch(run_id, metrics=points[start : start + BATCH])

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
        path = within_run(f"tables/{name}.parquet")
        if (folder := self.get(run_id).folder) is not None:
            refuse_link(folder, path)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return pd.read_parquet(self._client.download_artifacts(run_id, path, folder))
            except (OSError, MlflowException) as error:
                raise WorkbenchError(
                    f"run {run_id} has no readable table {name}. "
                    "Check its name, or run `./run doctor` to list lost files."
                ) from error

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
        within_run(path)
        if (folder := self.get(run_id).folder) is not None:
            refuse_link(folder, path)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(run_id, path, folder)).read_text()
            except (OSError, MlflowException) as error:
                raise WorkbenchError(
                    f"run {run_id} has no readable file {path}. Run `./run doctor` to list lost files."
                ) from error

    def artifacts(self, run_id: str) -> list[str]:
        """Return the paths of all files of a run, sorted."""
        paths, folders = [], [None]
        while folders:
            for item in self._client.list_artifacts(run_id, folders.pop()):
                (folders if item.is_dir else paths).append(item.path)
        return sorted(paths)

    # ---- trainings

    def lock(self, key: str) -> filelock.FileLock:
        """Return the lock of a training.

        One process at a time may hold it. A second one waits, and then finds the training finished.
        """
        folder = runs_folder() / "locks"
        folder.mkdir(exist_ok=True)
        mode, _, key = key.partition("-")
        return filelock.FileLock(folder / f"{mode}-{key[:32]}.lock")  # the name of its checkpoints' folder

    def reserve(self, lock: filelock.FileLock) -> bool:
        """Take a lock if it is free. Returns whether it was."""
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def find_training(self, key: str, mode: str) -> "tuple[str, TrainResult] | None":
        """Find a finished training with this key, complete or diverged.

        Trainings whose files are lost are skipped.

        Returns:
            The run id and the result. None if there is no such training.
        """
        from workbench.training import TrainResult

        runs = self.search("trainings", mode, f"tags.key = '{key}' and attributes.status = 'FINISHED'")
        for run in runs:
            if run.tags.get("outcome") in REUSABLE and not _is_lost(run, "result.json"):
                return run.id, TrainResult.from_json(self.read_text(run.id, "result.json"))
        return None

    def open_training(
        self,
        config: "TrainConfig",
        key: str,
        mode: str,
        *,
        role: str,
        arm: str,
        owner: str | None,
        started: float | None = None,
    ) -> str:
        """Open a run for a training.

        Args:
            config: The configuration.
            key: The training's key, which names its configuration, code and data.
            mode: "full" or "quick".
            role: "screen", "search" or "confirm".
            arm: Label of the arm.
            owner: Id of the notebook run that requested the training, if there is one.
            started: Seconds since 1970, for a training that ran elsewhere. None: now.

        Returns:
            The run id. The run is RUNNING.
        """
        from workbench.training import config_id

        run = self._client.create_run(
            self.experiment_id("trainings", mode),
            start_time=_milliseconds(started),
            run_name=config.name,
            tags={
                "key": key,
                "config_id": config_id(config),
                "configuration": views.configuration(arm, config.name, config_id(config)),
                "arm": arm,
                "role": role,
                "mode": mode,
                **_owner_tags(),
                "mlflow.source.name": "workbench.training",
                "mlflow.source.type": "LOCAL",
                **({"owner": owner} if owner else {}),
            },
        )
        return run.info.run_id

    def log_rows(self, run_id: str, rows: list[dict]) -> None:
        """Log rows of a training's history in one call.

        `epoch` and `samples_seen` are logged as curves, so that charts can use them as x-axis.

        Args:
            run_id: The run.
            rows: Rows with a `step`. `time` is optional, in seconds since 1970. A row that is logged again with the
                same `time` adds no second point.
        """
        points = []
        for row in rows:
            names = sorted(
                (k for k in row if k not in ROW_KEYS), key="val_acc".__ne__
            )  # first, as the compare page opens on it
            points += _points({name: row[name] for name in names}, row["step"], row.get("time"))
        self._log(run_id, points)

    def finish_training(self, run_id: str, result: "TrainResult", ended: float | None = None) -> None:
        """Log parameters, final metrics, result and history, then close the run as FINISHED.

        A training that diverged is FINISHED as well, because divergence is a result.

        Args:
            run_id: The run.
            result: The result of the training.
            ended: Seconds since 1970. None: now.
        """
        from workbench.networks import network_info

        config = result.config
        norm = config.model_args.get("norm", network_info(config.model).norm)
        params = {
            "model": config.model,
            "norm": norm,
            "batch_size": config.batch_size,
            "base_lr": config.base_lr,
            "lr": config.lr,
            "clip": config.clip,
            "clip_on": int(config.clip is not None),
            "clip_norm": config.clip_norm,
            "lr_x_clip": config.lr * config.clip if config.clip else None,
            "weight_decay": config.weight_decay,
            "steps": result.metrics.get("steps_planned"),
            "epochs": config.epochs,
            "optimizer": "sgd",
            "width": config.model_args.get("width"),
            "depth": result.metrics.get("depth"),
            "n_params": result.metrics.get("n_params"),
            "data": config.data,
            "train_size": config.train_size,
            "seed": config.seed,
        }
        logged = (
            result.history[-1] if result.history and result.outcome != "diverged" else {}
        )  # already logged by `log_rows`
        metrics = {k: v for k, v in result.metrics.items() if k not in {"steps_planned", "depth", "n_params", *logged}}
        self.log_metrics(run_id, metrics, step=result.metrics.get("steps_done", 0))
        self._client.log_batch(
            run_id,
            params=[Param(k, as_param(v)) for k, v in params.items() if v is not None],
            tags=[
                RunTag(k, str(v))
                for k, v in {
                    "outcome": result.outcome,
                    "code": result.code,
                    "data": result.data_digest,
                    "device": result.device,
                    "mlflow.note.content": in_words(result),
                    **({"cause": result.cause} if result.cause else {}),
                }.items()
            ],
        )
        self._client.log_text(run_id, result.to_json(), "result.json")
        self._client.log_text(run_id, json.dumps(dataclasses.asdict(config), indent=2), "config.json")
        if result.history:
            self.log_table(run_id, pd.DataFrame(result.history), "history")
        self.close(run_id, "FINISHED", ended)

    def tag_study(self, training: str, study: str, notebook_run: str) -> None:
        """Tag a training with the study and the notebook run that requested it."""
        self.set_tags(training, **{f"study.{study}": notebook_run})

    # ---- evaluations, checks and replays

    def open_run(self, experiment: str, name: str, parameters: dict, tags: dict[str, str], *, source: str) -> str:
        """Open a run of `evaluations`, `checks` or `replays`.

        Args:
            experiment: Name of the experiment.
            name: Name of the run.
            parameters: Its parameters.
            tags: Further tags.
            source: The command that writes the run.

        Returns:
            The run id. The run is RUNNING.
        """
        run = self._client.create_run(
            self.experiment_id(experiment, "full"),
            run_name=name,
            tags={**_owner_tags(), **tags, "mlflow.source.name": source, "mlflow.source.type": "LOCAL"},
        )
        self._client.log_batch(run.info.run_id, params=[Param(k, as_param(v)) for k, v in parameters.items()])
        return run.info.run_id

    # ---- searches

    def search(
        self, kind: str, mode: str, filter_string: str = "", *, view: ViewType = ViewType.ACTIVE_ONLY
    ) -> list[Run]:
        """Return all runs of an experiment that match an MLflow filter, newest first."""
        runs, token = [], None
        while True:
            with _without_collector():
                page = self._client.search_runs(
                    [self.experiment_id(kind, mode)], filter_string, view, 1000, page_token=token
                )
            runs += map(_as_run, page)
            token = page.token
            if not token:
                return runs

    def runs(self, experiment: str) -> list[Run]:
        """Return all runs of the experiment with this name, newest first."""
        kind, _, quick = experiment.partition("-")
        return self.search(kind, quick or "full")

    def orphans(self, owner: str | None = None) -> dict[str, str]:
        """Find RUNNING runs that no process writes any more.

        Args:
            owner: Id of a notebook run that has ended. Selects the runs that it started, instead of all runs whose
                process is gone.

        Returns:
            Names of runs by run id.
        """
        orphans = {}
        for name in EXPERIMENTS:
            kind, _, quick = name.partition("-")
            for run in self.search(kind, quick or "full", "attributes.status = 'RUNNING'"):
                if run.tags.get("owner") == owner if owner else not is_alive(run.tags.get("process", "")):
                    orphans[run.id] = run.name
        return orphans

    def close_orphans(self, owner: str | None = None) -> dict[str, str]:
        """Close the runs of `orphans` as KILLED and return their names by run id."""
        orphans = self.orphans(owner)
        for run_id in orphans:
            self.set_tags(run_id, outcome="failed", cause="its process ended before it did")
            self.close(run_id, "KILLED")
        return orphans

    def experiment_url(self, kind: str, mode: str, port: int = DEFAULT_PORT) -> str:
        """Return the address of an experiment's page. A tracking server ignores `port`."""
        return views.page(self._pages(port), self.experiment_id(kind, mode))

    def compare_url(self, run_ids: list[str], kind: str, mode: str, port: int = DEFAULT_PORT) -> str:
        """Return the address of the page that compares runs.

        Without a tracking server, `workbench ui` must run at `port`.
        """
        runs, experiment = ",".join(f"%22{r}%22" for r in run_ids), self.experiment_id(kind, mode)
        # The page reads `runs` only as the first argument.
        query = f"runs=[{runs}]&experiments=[%22{experiment}%22]&workflowType=machine_learning"
        return f"{self._pages(port)}/#/compare-runs?{query}"

    def _pages(self, port: int) -> str:
        return self.uri.rstrip("/") if self.uri.startswith("http") else f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Pause garbage collection.

    A page of runs has 50,000 objects, all in use. Collection would take two thirds of the time of a search.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _points(metrics: dict[str, float], step: int, when: float | None = None) -> list[Metric]:
    when = _milliseconds(time.time() if when is None else when)
    finite = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
    return [Metric(name, value, when, step) for name, value in finite.items()]


def is_away(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes is a server or database that does not answer."""
    while error is not None:
        if isinstance(error, requests.RequestException | OperationalError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _owner_tags() -> dict[str, str]:
    return {"process": whoami()}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
