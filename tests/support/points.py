"""Points of metrics in the database."""

from support.mlflow_view import client


def points_twice(store, runs):
    """List the (run, metric) pairs that have two points at one step."""
    repeated = []
    for run in runs:
        for metric in run.metrics:
            steps = [point.step for point in client(store).get_metric_history(run.id, metric)]
            repeated += [(run.id, metric)] if len(steps) != len(set(steps)) else []
    return repeated
