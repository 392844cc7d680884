"""What all tests share: the slow set, a temporary root, and the watch over the checkout's own mlruns/.

Run: `./run test` (everything but the marker `slow`), `./run test --slow` (everything), `./run test tests/test_agc.py
-k sparse`.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from support.checkout import CHECKOUT, SHARED_DATA


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow set, too")


FIRST = ("test_tour", "test_quick_studies", "test_crashes", "test_servers")  # the longest: else one process ends alone


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: not item.path.stem.startswith(FIRST))
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def the_checkouts_store_stays_as_it_is():
    """No test may write to the checkout's own store."""
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
    """A root whose database is made and migrated once; making one takes seconds."""
    folder = tmp_path_factory.mktemp("template")
    (folder / ".workbench").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from workbench.lab import Store

        Store()
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as db:  # what is still in the log of writes
        db.execute("pragma wal_checkpoint(truncate)")
    return folder


@pytest.fixture
def another_root(tmp_path, template_root, monkeypatch):
    """Makes workbenches of their own in temporary folders, with the checkout's notebooks and studies and an empty,
    migrated store; the last one made is the one that is used."""
    made = []

    def make() -> Path:
        folder = tmp_path / ("root" if not made else f"root{len(made)}")
        made.append(folder)
        shutil.copytree(template_root, folder, ignore=shutil.ignore_patterns("*-wal", "*-shm"))
        with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as db, db:  # artifact locations are absolute
            db.execute(
                "update experiments set artifact_location = replace(artifact_location, ?, ?)",
                (str(template_root), str(folder)),
            )
        for name in ("notebooks", "studies"):
            (folder / name).symlink_to(CHECKOUT / name)
        monkeypatch.setenv("WORKBENCH_ROOT", str(folder))
        for name in ("MLFLOW_TRACKING_URI", "WORKBENCH_CONTEXT", "WORKBENCH_EXECUTOR"):
            monkeypatch.delenv(name, raising=False)
        return folder

    return make


@pytest.fixture
def root(another_root) -> Path:
    """A workbench of its own."""
    return another_root()


@pytest.fixture
def one_thread(monkeypatch):
    """Torch takes one thread here, and in the processes that start: equal bits need equal threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cifar10():
    """The real images; skips where they are not."""
    if SHARED_DATA is None or not (Path(SHARED_DATA) / "cifar10" / "train.parquet").is_file():
        pytest.skip("CIFAR-10 is not here: set WORKBENCH_DATA to the folder that holds cifar10/")
    return Path(SHARED_DATA) / "cifar10"


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Two classes of 20 PNG images, 12 x 10 pixels: dark ones and bright ones."""
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
    """Runs a command line in this process, where starting another would only cost time: (exit code, out, err)."""
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
