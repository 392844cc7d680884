"""The store of runs: MLflow, its database, file locations, views, and retention on disk.

No other package imports MLflow or sees its types, because `Store` returns `Run`.
"""

from workbench.environment import set_default

# MLflow reads these variables when it is imported. Its server and client must not send telemetry.
set_default("MLFLOW_DISABLE_TELEMETRY", "true")
set_default("DO_NOT_TRACK", "true")
set_default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute, while trainings wait
set_default("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # one line per run that ends on a server
set_default("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one bar per small file
