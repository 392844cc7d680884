"""MLflow's client for a store that somebody changes in MLflow's pages meanwhile."""

from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from workbench.lab.executors import channel


class SharedClient(MlflowClient):
    """Takes a run or an experiment out of MLflow's trash when something is written to it.

    What the workbench writes is wanted: a result must not be lost because its run was deleted meanwhile.
    """

    def create_run(self, experiment_id: str, *args, **kwargs) -> Run:
        """Create a run, in an experiment that may be in the trash."""
        create = super().create_run
        return _revived(
            lambda: create(experiment_id, *args, **kwargs),
            lambda: self.restore_experiment(experiment_id),
            experiment_id,
        )

    def log_batch(self, run_id: str, *args, **kwargs) -> Any:
        """Log to a run that may be in the trash."""
        log = super().log_batch
        return _revived(lambda: log(run_id, *args, **kwargs), lambda: self.restore_run(run_id), run_id)

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
