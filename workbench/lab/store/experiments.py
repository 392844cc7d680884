"""The experiments of the store, found again whatever a user of MLflow's pages did to them.

MLflow's pages can rename an experiment, and delete it into a trash. A tag names the experiment for the workbench, so a
renamed one stays in use. A deleted one is restored, because all results are in it.
"""

from mlflow import MlflowClient
from mlflow.entities import Experiment, ViewType

from workbench.lab.executors import channel
from workbench.lab.store import views
from workbench.lab.store.database import is_database
from workbench.lab.store.locations import EXPERIMENTS, default_uri, files_of, refuse_moved

ROLE = "workbench.experiment"  # the tag with one of these names
NOTE = "mlflow.note.content"


def open_experiments(client: MlflowClient, uri: str, *, anywhere: bool) -> dict[str, Experiment]:
    """Find the experiments of the store, and make those that are missing.

    Args:
        client: MLflow's client.
        uri: The store.
        anywhere: Change no experiment that exists, and accept another place of its files. The doctor does this.

    Returns:
        The experiments by name.

    Raises:
        WorkbenchError: If the store was moved or copied here.
    """
    tagged = {e.tags[ROLE]: e for e in _all(client, f"tags.`{ROLE}` LIKE '%'")}
    experiments = {}
    for name in EXPERIMENTS:
        experiment = tagged.get(name) or _untagged(client, uri, name)
        if experiment is None:
            location = files_of(name).as_uri() if is_database(uri) else None
            tags = views.experiment_tags(name) | {ROLE: name}
            experiment = client.get_experiment(client.create_experiment(name, artifact_location=location, tags=tags))
            _describe(client, name, experiment)
        elif not anywhere:
            if uri == default_uri():
                refuse_moved(name, experiment.artifact_location)
            _revive(client, name, experiment)
        experiments[name] = experiment
    return experiments


def is_deleted(experiment: Experiment) -> bool:
    """Return whether an experiment is in MLflow's trash."""
    return experiment.lifecycle_stage == "deleted"


def _all(client: MlflowClient, filter_string: str | None = None) -> list[Experiment]:
    experiments, token = [], None
    while True:
        page = client.search_experiments(ViewType.ALL, filter_string=filter_string, page_token=token)
        experiments += page
        if not (token := page.token):
            return experiments


def _untagged(client: MlflowClient, uri: str, name: str) -> Experiment | None:
    """Find an experiment of an older version by its name, or by the place of its files if it was renamed."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.tags.get(ROLE, name) == name:
        return experiment
    places = [e for e in _all(client) if e.artifact_location.endswith(f"/artifacts/{name}")] if is_database(uri) else []
    return next((e for e in places if ROLE not in e.tags), None)


def _revive(client: MlflowClient, name: str, experiment: Experiment) -> None:
    """Restore an experiment, and complete its tags."""
    if is_deleted(experiment):
        client.restore_experiment(experiment.experiment_id)
        channel.announce(f"the experiment {name} was deleted in MLflow: it is restored, with its runs")
    if ROLE not in experiment.tags:  # an older version made it
        client.set_experiment_tag(experiment.experiment_id, ROLE, name)
    if NOTE not in experiment.tags:  # its process was killed before it could set the description
        _describe(client, name, experiment)


def _describe(client: MlflowClient, name: str, experiment: Experiment) -> None:
    client.set_experiment_tag(experiment.experiment_id, NOTE, views.description(name, experiment.experiment_id))
