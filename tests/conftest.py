"""Shared fixtures: the slow set, temporary roots, and a guard of the checkout's store mlruns/.

Run `./run test` for all tests without the marker `slow`, `./run test --slow` for all tests, and, for example,
`./run test tests/test_agc.py -k sparse` for some of them.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from support.checkout import CHECKOUT, SHARED_DATA
from support.roots import copy_of_root

# Property tests repeat exactly: the examples depend on the test alone, and no time limit can end one.
settings.register_profile(
    "repeatable",
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the slow tests")


FIRST = (
    "test_tour",
    "test_quick_studies",
    "test_crashes",
    "test_servers",
)  # the longest start first, so that parallel processes end together


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not item.path.stem.startswith(FIRST))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def the_checkouts_store_stays_as_it_is():
    """Check that no test writes to the checkout's store."""
    before = _listing(CHECKOUT / "mlruns")
    yield
    assert _listing(CHECKOUT / "mlruns") == before, "a test wrote to the checkout's mlruns/"


def _listing(folder: Path) -> dict:
    return {f: f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(autouse=True)
def a_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def template_root(tmp_path_factory) -> Path:
    """Root whose database is made and migrated once, because that takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    (folder / ".workbench").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from workbench.lab import Store

        Store()
    with closing(
        sqlite3.connect(folder / "mlruns" / "mlflow.db")
    ) as db:  # moves pending writes from the log into the file
        db.execute("pragma wal_checkpoint(truncate)")
    return folder


@pytest.fixture
def another_root(tmp_path, template_root, monkeypatch):
    """Make roots in temporary folders. The newest root is in use.

    Each has the checkout's notebooks and studies, and an empty, migrated store.
    """
    made = []

    def make() -> Path:
        folder = tmp_path / ("root" if not made else f"root{len(made)}")
        made.append(folder)
        return copy_of_root(template_root, folder, monkeypatch)

    return make


@pytest.fixture
def root(another_root) -> Path:
    """Root in a temporary folder."""
    return another_root()


@pytest.fixture
def one_thread(monkeypatch):
    """Use one torch thread in this process and its children, because equal bits need equal threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cifar10():
    """Folder of the real images. Skip the test if they are missing."""
    if SHARED_DATA is None or not (Path(SHARED_DATA) / "cifar10" / "train.parquet").is_file():
        pytest.skip("CIFAR-10 is missing. Set WORKBENCH_DATA to the folder that contains cifar10/.")
    return Path(SHARED_DATA) / "cifar10"


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Folder with two classes, dark and bright, of 20 PNG images each, 12 x 10 pixels."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, base in (("bright", 180), ("dark", 20)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(base, base + 60, (12, 10, 3), dtype=np.uint8)).save(
                tmp_path / "images" / label / f"{i}.png"
            )
    return tmp_path / "images"


@pytest.fixture
def command(capsys):
    """Run command lines in this process, which is faster than a new one. Return (exit code, out, err)."""
    import signal
    import sys

    from workbench import cli

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["workbench", *map(str, arguments)])
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    yield run
    signal.signal(signal.SIGTERM, before)
