"""The store of runs: MLflow, its database, file locations, views, and retention on disk.

No other package imports MLflow or sees its types, because `Store` returns `Run`.
"""

import os

# MLflow reads these variables when it is imported. Its server and client must not send telemetry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute, while trainings wait
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # one line per run that ends on a server
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar per small file
