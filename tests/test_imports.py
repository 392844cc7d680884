"""What importing the library costs. Evidence: the modules that a fresh process has afterwards."""

import os
import subprocess
import sys

import pytest
from support.checkout import CHECKOUT

LATE = {"pandas", "scipy", "matplotlib", "mlflow", "optuna", "pyarrow"}


@pytest.mark.parametrize("module", ["workbench.optim", "workbench.models"])
def test_the_library_imports_no_package_that_only_tables_and_studies_need(module):
    code = f"import sys, torch\nbefore = set(sys.modules)\nimport {module}\nprint(*set(sys.modules) - before)"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert module in done.stdout.split() and not LATE & set(done.stdout.split())
