"""The store of runs: MLflow, its database, where its files lie, its ready-made views, and what stays on disk.

No other room imports MLflow or sees its types: `Store` returns `Run`.
"""

import os

# MLflow reads these when it is imported. Neither its server nor its client shall call home.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute: trainings wait meanwhile
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # of each run that ends on a server
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # small files, each with a bar of its own
