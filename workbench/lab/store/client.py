"""The store of runs: MLflow, by default on sqlite under mlruns/.

The experiments are flat:

- `studies`: one run is one execution of a notebook
- `trainings`: one run is one training
- `studies-quick` and `trainings-quick`: the same in quick mode
- `evaluations`: one run is one network with weights over one set of images
- `checks`: one run is one pre-flight
- `replays`: one run is one replay

The store uses MLflow's client with explicit run ids and never an active run. Each run names the process that writes it
(host, boot, pid) and holds a lock, so the store can find runs of dead processes.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import filelock
import pandas as pd
import requests
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from workbench.lab.executors import channel
from workbench.lab.executors.lifetime import announced, is_alive
from workbench.lab.store import views
from workbench.lab.store.database import with_driver
from workbench.lab.store.descriptions import as_param, in_words, params_of
from workbench.lab.store.experiments import EXPERIMENTS, is_deleted, open_experiments
from workbench.lab.store.locations import default_uri, folder_of, refuse_blocked, runs_folder, tracking_uri
from workbench.lab.store.locks import locked
from workbench.lab.store.opening import make_tables, refuse_unusable, unopened
from workbench.lab.store.run_files import RunFiles
from workbench.lab.store.runs import Run
from workbench.lab.store.shared_client import RunIsGone, SharedClient
from workbench.lab.store.stored_results import RESULT, DamagedResult
from workbench.outcomes import DIVERGED, FAILED, RESULTS

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and readers of the store do not need it
    from workbench.training import TrainConfig, TrainResult

logging.getLogger("mlflow").setLevel(logging.WARNING)  # users do not need its notes on making tables
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it raises these errors as well

FOLDERS = ("locks", "locks/seats", "checkpoints", "artifacts", *(f"artifacts/{name}" for name in EXPERIMENTS))
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


class Store(RunFiles):
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
            refuse_blocked(FOLDERS)
            with locked(runs_folder() / ".store.lock", "the store"):
                refuse_unusable(self.uri)
                make_tables(self.uri)
                self._client = SharedClient(tracking_uri=with_driver(self.uri))
                experiments = open_experiments(self._client, self.uri, anywhere=anywhere)
        except (*UNREACHABLE, ImportError) as error:
            raise unopened(self.uri, error) from error
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

    def has(self, run_id: str) -> bool:
        """Return whether the store has this run, even in MLflow's trash."""
        try:
            self._client.get_run(run_id)
        except RunIsGone:
            return False
        return True

    def is_kept(self, run_id: str) -> bool:
        """Return whether the store has this run FINISHED, and not in MLflow's trash."""
        try:
            info = self._client.get_run(run_id).info
        except RunIsGone:
            return False
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

    # ---- trainings

    def lock(self, key: str) -> filelock.FileLock:
        """Return the lock of a training.

        One process at a time may hold it. A second one waits, and then finds the training finished.
        """
        mode, _, key = key.partition("-")
        return filelock.FileLock(folder_of("locks") / f"{mode}-{key[:32]}.lock")  # the name of its checkpoints' folder

    def reserve(self, lock: filelock.FileLock) -> bool:
        """Take a lock if it is free. Returns whether it was."""
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def find_training(self, key: str, mode: str) -> "tuple[str, TrainResult] | None":
        """Find a training with this key that has a result: complete, collapsed or diverged.

        Trainings whose result is lost or damaged are skipped.

        Returns:
            The run id and the result. None if there is no such training.
        """
        runs = self.search("trainings", mode, f"tags.key = '{key}' and attributes.status = 'FINISHED'")
        for run in runs:
            if run.tags.get("outcome") in RESULTS and not _is_lost(run, RESULT):
                try:
                    stored = self.read_result(run.id)
                except DamagedResult as error:
                    channel.announce(str(error))
                    continue
                if stored.key == key:  # a tag can be edited
                    return run.id, stored.as_train_result()
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

        A training that diverged or collapsed is FINISHED as well, because that is a result.

        Args:
            run_id: The run.
            result: The result of the training.
            ended: Seconds since 1970. None: now.
        """
        logged = (
            result.history[-1] if result.history and result.outcome != DIVERGED else {}
        )  # already logged by `log_rows`
        metrics = {k: v for k, v in result.metrics.items() if k not in {"steps_planned", "depth", "n_params", *logged}}
        self.log_metrics(run_id, metrics, step=result.metrics.get("steps_done", 0))
        self._client.log_batch(
            run_id,
            params=[Param(k, v) for k, v in params_of(result).items()],
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
        self._client.log_text(run_id, result.to_json(), RESULT)
        self._client.log_text(run_id, json.dumps(dataclasses.asdict(result.config), indent=2), "config.json")
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
                if run.tags.get("owner") == owner if owner else not self.is_written(run):
                    orphans[run.id] = run.name
        return orphans

    def is_written(self, run: Run) -> bool:
        """Return whether the process that writes a run still lives."""
        return is_alive(run.process, shared=self.uri == default_uri())

    def close_orphans(self, owner: str | None = None) -> dict[str, str]:
        """Close the runs of `orphans` as KILLED and return their names by run id."""
        orphans = self.orphans(owner)
        for run_id in orphans:
            self.set_tags(run_id, outcome=FAILED, cause="its process ended before it did")
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
    return {"process": announced()}


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000)
