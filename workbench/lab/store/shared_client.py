"""MLflow's client for a store that somebody changes in MLflow's pages meanwhile."""

import functools
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from workbench.errors import WorkbenchError
from workbench.lab.executors import channel


class RunIsGone(WorkbenchError, MlflowException):
    """Error for a run that was deleted for good."""

    def __init__(self, run_id: str):
        MlflowException.__init__(
            self,
            f"the store has no run {run_id}. If it was deleted for good in MLflow, run its command again.",
            error_code=RESOURCE_DOES_NOT_EXIST,
        )


def _refusing(method: Callable) -> Callable:
    """Wrap a method of MLflow's client, so that a run that is gone is an error with a sentence."""

    @functools.wraps(method)
    def call(self: MlflowClient, run_id: str, *args, **kwargs):
        try:
            return method(self, run_id, *args, **kwargs)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise
            raise RunIsGone(run_id) from error

    return call


class SharedClient(MlflowClient):
    """Takes a run or an experiment out of MLflow's trash when something is written to it.

    What the workbench writes is wanted: a result must not be lost because its run was deleted meanwhile.
    """

    get_run = _refusing(MlflowClient.get_run)
    get_metric_history = _refusing(MlflowClient.get_metric_history)
    log_text = _refusing(MlflowClient.log_text)
    log_artifact = _refusing(MlflowClient.log_artifact)
    log_artifacts = _refusing(MlflowClient.log_artifacts)
    list_artifacts = _refusing(MlflowClient.list_artifacts)

    def create_run(self, experiment_id: str, *args, **kwargs) -> Run:
        """Create a run, in an experiment that may be in the trash."""
        create = super().create_run
        return _revived(
            lambda: create(experiment_id, *args, **kwargs),
            lambda: self.restore_experiment(experiment_id),
            experiment_id,
        )

    @_refusing
    def log_batch(self, run_id: str, *args, **kwargs) -> Any:
        """Log to a run that may be in the trash."""
        log = super().log_batch
        return _revived(lambda: log(run_id, *args, **kwargs), lambda: self.restore_run(run_id), run_id)

    @_refusing
    def set_terminated(self, run_id: str, *args, **kwargs) -> None:
        """Close a run that may be in the trash."""
        close = super().set_terminated
        _revived(lambda: close(run_id, *args, **kwargs), lambda: self.restore_run(run_id), run_id)


def _revived(write: Callable[[], Any], restore: Callable[[], None], what: str) -> Any:
    try:
        return write()
    except MlflowException as error:
        if "must be in the 'active' state" not in str(error):
            raise
    restore()
    channel.announce(f"{what} was deleted in MLflow while it is in use: it is restored")
    return write()
