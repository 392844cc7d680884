"""Roots in temporary folders, made of one whose database is migrated already."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from support.checkout import CHECKOUT


def copy_of_root(template: Path, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Copy a root, give it the checkout's notebooks and studies, and use it."""
    shutil.copytree(template, folder, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as db, db:  # artifact locations are absolute
        db.execute(
            "update experiments set artifact_location = replace(artifact_location, ?, ?)", (str(template), str(folder))
        )
    for name in ("notebooks", "studies"):
        (folder / name).symlink_to(CHECKOUT / name)
    patch.setenv("WORKBENCH_ROOT", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT", "WORKBENCH_EXECUTOR"):
        patch.delenv(name, raising=False)
    return folder
