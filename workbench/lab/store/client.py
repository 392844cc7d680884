"""The one store of runs: MLflow on sqlite under mlruns/. No other file knows MLflow.

Flat experiments: `studies`, one run an execution of a notebook, and `trainings`, one run a training (each with a
`-quick` twin); `evaluations`, one run a network with weights over a set of images; `checks`, one run a pre-flight;
`replays`, one run a replay.
Only the client with explicit run ids, no active run. A run names the process that writes it (host, boot, pid), so a
dead one can be told.
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
from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from workbench.errors import WorkbenchError, disk_error_message
from workbench.lab.executors.lifetime import is_alive, whoami
from workbench.lab.store import views
from workbench.lab.store.database import is_database, with_driver, without_password
from workbench.lab.store.descriptions import as_param, in_words
from workbench.lab.store.locations import default_uri, files_of, refuse_moved, runs_folder, tracking_uri
from workbench.lab.store.opening import allow_many_writers, make_tables, refuse_unusable
from workbench.lab.store.run_files import refuse_link, within_run
from workbench.lab.store.runs import Run

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and who only reads the store does without
    from workbench.training import TrainConfig, TrainResult

logging.getLogger("mlflow").setLevel(logging.WARNING)  # its notes on making tables are not the user's business
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what it writes there, it raises too

EXPERIMENTS = ("studies", "trainings", "evaluations", "checks", "replays", "studies-quick", "trainings-quick")
REUSABLE = ("complete", "diverged")
DEFAULT_PORT = 5000
BATCH = 1000  # MLflow's limit of metrics in one call
ROW_KEYS = ("step", "seconds", "time")  # of a history row, no curves
UNREACHABLE = (MlflowException, SQLAlchemyError, OSError)  # what a store raises that is not there, or is full


def _is_lost(run: Run, path: str) -> bool:
    """Whether a run's file is gone; of a run whose files are behind a server nothing is known."""
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
    """Opens the store, making it first where there is none (a few seconds, once, under a lock)."""

    def __init__(self, uri: str | None = None, *, anywhere: bool = False):
        """Args: `anywhere` opens one whose files are said to lie elsewhere, too, which the doctor mends.

        Raises: WorkbenchError for a store that cannot be opened, or was moved or copied here.
        """
        self.uri = uri or tracking_uri()
        try:
            with filelock.FileLock(runs_folder() / ".store.lock"):
                refuse_unusable(self.uri)
                make_tables(self.uri)
                self._client = MlflowClient(tracking_uri=with_driver(self.uri))
                self._experiments = {name: self._experiment(name, anywhere) for name in EXPERIMENTS}
                allow_many_writers(self.uri)
        except (*UNREACHABLE, ImportError) as error:
            cause, uri = str(getattr(error, "orig", None) or error).splitlines()[0], without_password(self.uri)
            cure = "move the file away and a new one is made, or set MLFLOW_TRACKING_URI to another store"
            if "db upgrade" in cause:
                cause, cure = "an older MLflow made it", f"copy it, then run `mlflow db upgrade {uri}`"
            elif disk_error_message(error):
                cure = "free some space, or choose another place with WORKBENCH_ROOT or MLFLOW_TRACKING_URI"
            elif isinstance(error, ImportError):
                cure = "install the missing package, or set MLFLOW_TRACKING_URI to another store"
            raise WorkbenchError(f"cannot open the store {uri} ({cause}): {cure}.") from error

    def _experiment(self, name: str, anywhere: bool) -> str:
        experiment: Experiment | None = self._client.get_experiment_by_name(name)
        if experiment is not None:
            if self.uri == default_uri() and not anywhere:
                refuse_moved(name, experiment.artifact_location)
            if "mlflow.note.content" not in experiment.tags:  # who made it was killed before it could say what it is
                self._describe_experiment(name, experiment.experiment_id)
            return experiment.experiment_id
        location = files_of(name).as_uri() if is_database(self.uri) else None
        made = self._client.create_experiment(name, artifact_location=location, tags=views.experiment_tags(name))
        self._describe_experiment(name, made)
        return made

    def _describe_experiment(self, name: str, experiment_id: str) -> None:
        self._client.set_experiment_tag(experiment_id, "mlflow.note.content", views.description(name, experiment_id))

    def experiment_id(self, kind: str, mode: str) -> str:
        """The id of the experiment that holds runs of `kind` (studies, trainings) in `mode` (full, quick)."""
        return self._experiments[kind if mode == "full" else f"{kind}-quick"]

    # ---- runs of notebooks

    def open_notebook(
        self, study: str, notebook: str, parameters: dict, mode: str, name: str, tags: dict[str, str]
    ) -> str:
        """A RUNNING run for one execution of a notebook; returns its id."""
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
        """Sets the final status: FINISHED, FAILED or KILLED; `ended` in seconds since 1970, None: now."""
        self._client.set_terminated(run_id, status, _milliseconds(ended))

    def status(self, run_id: str) -> str:
        return self.get(run_id).status

    def get(self, run_id: str) -> Run:
        return _as_run(self._client.get_run(run_id))

    def set_tags(self, run_id: str, **tags: str) -> None:
        self._client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def describe(self, run_id: str, text: str) -> None:
        """The description that the run's page shows on top (Markdown)."""
        self.set_tags(run_id, **{"mlflow.note.content": text})

    # ---- what a run holds

    def log_metrics(self, run_id: str, metrics: dict[str, float], step: int = 0) -> None:
        """Logs the finite numbers among `metrics`; others would be stored as 1.8e308 and spoil every chart."""
        self._log(run_id, _points(metrics, step))

    def _log(self, run_id: str, points: list[Metric]) -> None:
        for start in range(0, len(points), BATCH):
            self._client.log_batch(run_id, metrics=points[start : start + BATCH])

    def log_table(self, run_id: str, table: pd.DataFrame, name: str) -> None:
        """A tidy table as Parquet, exact, and as CSV, which the run's page shows."""
        within_run(name)
        with tempfile.TemporaryDirectory() as folder:
            for suffix, write in ((".parquet", table.to_parquet), (".csv", table.to_csv)):
                write(Path(folder) / f"{name}{suffix}", index=False)
            self._client.log_artifacts(run_id, folder, "tables")

    def read_table(self, run_id: str, name: str) -> pd.DataFrame:
        """A table that `log_table` kept. Raises: WorkbenchError where the run has none of this name."""
        path = within_run(f"tables/{name}.parquet")
        if (folder := self.get(run_id).folder) is not None:
            refuse_link(folder, path)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return pd.read_parquet(self._client.download_artifacts(run_id, path, folder))
            except (OSError, MlflowException) as error:
                raise WorkbenchError(f"run {run_id} has no table {name} that can be read.") from error

    def log_figure(self, run_id: str, figure, name: str) -> None:
        """A matplotlib figure as PNG and as SVG."""
        within_run(name)
        with tempfile.TemporaryDirectory() as folder:
            for suffix in (".png", ".svg"):
                figure.savefig(Path(folder) / f"{name}{suffix}", dpi=160, bbox_inches="tight")
            self._client.log_artifacts(run_id, folder, "figures")

    def log_text(self, run_id: str, text: str, path: str) -> None:
        self._client.log_text(run_id, text, within_run(path))

    def log_file(self, run_id: str, file: Path, folder: str) -> None:
        self._client.log_artifact(run_id, str(file), within_run(folder))

    def read_text(self, run_id: str, path: str) -> str:
        """A text that a run holds. Raises: WorkbenchError where it has none of this name."""
        within_run(path)
        if (folder := self.get(run_id).folder) is not None:
            refuse_link(folder, path)
        with tempfile.TemporaryDirectory() as folder:
            try:
                return Path(self._client.download_artifacts(run_id, path, folder)).read_text()
            except (OSError, MlflowException) as error:
                raise WorkbenchError(
                    f"run {run_id} has no {path} that can be read: `./run doctor` says what is lost."
                ) from error

    def artifacts(self, run_id: str) -> list[str]:
        """The paths of all files that a run holds."""
        paths, folders = [], [None]
        while folders:
            for item in self._client.list_artifacts(run_id, folders.pop()):
                (folders if item.is_dir else paths).append(item.path)
        return sorted(paths)

    # ---- trainings

    def lock(self, key: str) -> filelock.FileLock:
        """The lock of a training, for one asker at a time: the second waits, then finds it finished."""
        folder = runs_folder() / "locks"
        folder.mkdir(exist_ok=True)
        mode, _, key = key.partition("-")
        return filelock.FileLock(folder / f"{mode}-{key[:32]}.lock")  # named as the folder of its checkpoints

    def reserve(self, lock: filelock.FileLock) -> bool:
        """Takes a lock if nobody has it."""
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def find_training(self, key: str, mode: str) -> "tuple[str, TrainResult] | None":
        """The run id and result of a finished training with this key, complete or diverged; one whose files are lost is
        passed over."""
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
        """A RUNNING run for a training that is about to start, or did at `started` (seconds since 1970) elsewhere;
        `owner` is the notebook run that asked for it."""
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
        """Rows of a training's history, in one go; `epoch` and `samples_seen` are there to be an x-axis. `time`, if a
        row has one, is when it came (seconds since 1970): rows logged again with theirs are no points twice."""
        points = []
        for row in rows:
            names = sorted((k for k in row if k not in ROW_KEYS), key="val_acc".__ne__)  # the compare page opens on it
            points += _points({name: row[name] for name in names}, row["step"], row.get("time"))
        self._log(run_id, points)

    def finish_training(self, run_id: str, result: "TrainResult", ended: float | None = None) -> None:
        """Parameters, final metrics, result, history; then FINISHED, whatever the outcome: a divergence is a result."""
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
        logged = result.history[-1] if result.history and result.outcome != "diverged" else {}  # a point is logged once
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
        """Lists the notebook execution that asked for a training on the training's own page."""
        self.set_tags(training, **{f"study.{study}": notebook_run})

    # ---- evaluations, checks and replays

    def open_run(self, experiment: str, name: str, parameters: dict, tags: dict[str, str], *, source: str) -> str:
        """A RUNNING run of `evaluations`, `checks` or `replays`, which the command `source` writes; returns its id."""
        run = self._client.create_run(
            self.experiment_id(experiment, "full"),
            run_name=name,
            tags={**_owner_tags(), **tags, "mlflow.source.name": source, "mlflow.source.type": "LOCAL"},
        )
        self._client.log_batch(run.info.run_id, params=[Param(k, as_param(v)) for k, v in parameters.items()])
        return run.info.run_id

    # ---- looking back

    def search(self, kind: str, mode: str, filter_string: str = "") -> list[Run]:
        """All runs of an experiment that match MLflow's filter, newest first."""
        runs, token = [], None
        while True:
            with _without_collector():
                page = self._client.search_runs(
                    [self.experiment_id(kind, mode)], filter_string, ViewType.ACTIVE_ONLY, 1000, page_token=token
                )
            runs += map(_as_run, page)
            token = page.token
            if not token:
                return runs

    def runs(self, experiment: str) -> list[Run]:
        """All runs of an experiment by its name, newest first."""
        kind, _, quick = experiment.partition("-")
        return self.search(kind, quick or "full")

    def orphans(self, owner: str | None = None) -> dict[str, str]:
        """{run id: name} of RUNNING runs whose process is gone, or, with `owner`, that the ended notebook run `owner`
        started."""
        orphans = {}
        for name in EXPERIMENTS:
            kind, _, quick = name.partition("-")
            for run in self.search(kind, quick or "full", "attributes.status = 'RUNNING'"):
                if run.tags.get("owner") == owner if owner else not is_alive(run.tags.get("process", "")):
                    orphans[run.id] = run.name
        return orphans

    def close_orphans(self, owner: str | None = None) -> dict[str, str]:
        """Closes `orphans` as KILLED and returns them."""
        orphans = self.orphans(owner)
        for run_id in orphans:
            self.set_tags(run_id, outcome="failed", cause="its process ended before it did")
            self.close(run_id, "KILLED")
        return orphans

    def experiment_url(self, kind: str, mode: str, port: int = DEFAULT_PORT) -> str:
        return views.page(self._pages(port), self.experiment_id(kind, mode))

    def compare_url(self, run_ids: list[str], kind: str, mode: str, port: int = DEFAULT_PORT) -> str:
        """The address, once the UI runs (a server has its own), at which these runs stand side by side."""
        runs, experiment = ",".join(f"%22{r}%22" for r in run_ids), self.experiment_id(kind, mode)
        query = (
            f"runs=[{runs}]&experiments=[%22{experiment}%22]&workflowType=machine_learning"  # the page wants runs first
        )
        return f"{self._pages(port)}/#/compare-runs?{query}"

    def _pages(self, port: int) -> str:
        return self.uri.rstrip("/") if self.uri.startswith("http") else f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """A page of runs is 50,000 objects, all kept: to look for garbage among them takes two thirds of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _points(metrics: dict[str, float], step: int, when: float | None = None) -> list[Metric]:
    when = _milliseconds(time.time() if when is None else when)
    finite = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
    return [Metric(name, value, when, step) for name, value in finite.items()]


def is_away(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a server or a database does not answer."""
    while error is not None:
        if isinstance(error, requests.RequestException | OperationalError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _owner_tags() -> dict[str, str]:
    return {"process": whoami()}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
