"""The store through MLflow's client."""

from mlflow import MlflowClient

from workbench.lab.store.database import with_driver


def client(store) -> MlflowClient:
    """Make MLflow's client for this store."""
    return MlflowClient(tracking_uri=with_driver(store.uri))
