"""Points of metrics, as the database has them."""

from support.mlflow_view import client


def points_twice(store, runs):
    """(run, metric) pairs with two points at one step."""
    repeated = []
    for run in runs:
        for metric in run.metrics:
            steps = [point.step for point in client(store).get_metric_history(run.id, metric)]
            repeated += [(run.id, metric)] if len(steps) != len(set(steps)) else []
    return repeated
