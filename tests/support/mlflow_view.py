"""The store as MLflow's own client sees it."""

from mlflow import MlflowClient

from workbench.lab.store.database import with_driver


def client(store) -> MlflowClient:
    """MLflow's client on this store."""
    return MlflowClient(tracking_uri=with_driver(store.uri))
