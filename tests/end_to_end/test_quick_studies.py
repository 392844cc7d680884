"""Every study outside the tour, in its quick form, from the command line.

Evidence: the study finishes with a figure and tables. Its rule gives the same verdict from the stored tables as in the
notebook.
"""

import os
import subprocess
import sys

import pandas as pd
import pytest
from support.checkout import CHECKOUT

from workbench.claims.registry import all_claims
from workbench.lab.studies.spec import Study

NAMES = sorted(f.stem for f in (CHECKOUT / "studies").glob("*.yaml") if not Study.load(f).tour)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_form_finishes_and_its_tables_give_the_same_verdict(name, tmp_path, monkeypatch):
    (tmp_path / ".workbench").touch()
    for folder in ("notebooks", "studies"):
        (tmp_path / folder).symlink_to(CHECKOUT / folder)
    monkeypatch.setenv("WORKBENCH_ROOT", str(tmp_path))
    for variable in ("MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT"):
        monkeypatch.delenv(variable, raising=False)
    command = [sys.executable, "-m", "workbench.cli", "study", name, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), cwd=CHECKOUT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DEMO" in done.stdout

    from workbench.lab import Store

    store = Store()
    (run,) = store.search("studies", "quick")
    assert run.status == "FINISHED"
    files = store.artifacts(run.id)
    assert any(f.startswith("figures/") and f.endswith(".svg") for f in files) and "notebook/run.html" in files
    for claim in (claim for claim in all_claims() if claim.study == name):
        tables = {table: store.read_table(run.id, table) for table in claim.tables}
        verdict = claim.judge(tables)
        assert verdict.headline == run.tags["verdict"] and len(verdict.headline.split()) <= 25
        stored = store.read_table(run.id, "verdict").head(
            len(verdict.table)
        )  # a notebook may append rows that it measured
        pd.testing.assert_frame_equal(verdict.table, stored, check_dtype=False)
