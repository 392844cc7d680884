"""A store of the first edition still opens. Its runs can be compared, judged, replayed and resumed.

Evidence: support/first_edition_store.tar.gz, moved to another folder. It is the folder mlruns/ that the first edition
made (commit c851b6e). It holds trainings (one diverged, one of a user's network), a check, a replay, a quick search and
a full study.
"""

import contextlib
import shutil
import sqlite3
import tarfile

import pandas as pd
import pytest
from support.checkout import CHECKOUT

from workbench.errors import WorkbenchError
from workbench.lab import Store
from workbench.lab.store.database import Database

ARCHIVE = CHECKOUT / "tests" / "support" / "first_edition_store.tar.gz"
STUDY = ["large_batch", "-p", "data=mnist5k", "-p", "train_size=128", "-p", "batch_sizes=[32]", "-p", "lrs=[0.8]"]
STUDY += ["-p", "seeds=[0, 1]", "-p", "steps=8", "-p", "shift=0", "-p", "opponents=[]"]


@pytest.fixture
def old(root, monkeypatch):
    """A root whose store is the old one."""
    shutil.rmtree(root / "mlruns")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root, filter="data")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def mended(old, command):
    code, output, errors = command("doctor", "--fix")
    assert code == 0, output + errors
    return old


def runs_of(root, experiment):
    with contextlib.closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as database:
        query = "select run_uuid, artifact_uri from runs join experiments e using (experiment_id) where e.name = ?"
        return dict(database.execute(query, (experiment,)).fetchall())


def test_a_moved_store_is_refused_until_the_doctor_has_mended_it(old, command):
    with pytest.raises(WorkbenchError, match=r"doctor --fix"):
        Store()
    code, output, _ = command("doctor")
    assert code == 1 and "is a replay" in output and runs_of(old, "replays") == {}
    code, output, _ = command("doctor", "--fix")
    assert code == 0, output
    code, output, _ = command("doctor")
    assert code == 0, output


def test_the_doctor_moves_replays_out_of_the_checks_with_their_files(old, command):
    before = runs_of(old, "checks")
    assert len(before) == 2
    command("doctor", "--fix")
    (replay,) = runs_of(old, "replays")
    assert set(before) == {replay, *runs_of(old, "checks")}
    store = Store()
    assert not store.read_table(replay, "steps").empty and store.get(replay).tags["replay_of"]
    (check,) = store.search("checks", "full")
    assert not store.read_table(check.id, "blocks").empty
    assert not (old / "mlruns" / "artifacts" / "checks" / replay).exists()


def test_an_interrupted_move_of_a_replay_is_finished_by_the_next_doctor(old, command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Database, "move_run", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        code, _, _ = command("doctor", "--fix")
    assert code == 1 and runs_of(old, "replays") == {}
    code, output, _ = command("doctor", "--fix")
    (replay,) = runs_of(old, "replays")
    assert code == 0 and not Store().read_table(replay, "steps").empty, output


def test_old_trainings_can_be_compared_and_diffed(mended, command):
    code, output, errors = command("compare", "large_batch", "--csv", "table.csv")
    assert code == 0, errors
    table = pd.read_csv("table.csv")
    assert set(table.arm) == {"BN", "NF", "NF+AGC"} and set(table.seeds) == {2}
    first, second = table.config_id[:2]
    code, output, errors = command("diff", first, second)
    assert code == 0 and "what differs" in output, errors


def test_old_studies_can_be_judged(mended, command):
    code, output, errors = command("claims", "large_batch", "--from", "store")
    assert code == 0 and "2c54ac89" in output, errors


@pytest.mark.parametrize("what", ["diverged", "of a user's network"])
def test_old_trainings_are_replayed_bit_for_bit(mended, command, what):
    outcomes = {"diverged": "tags.outcome = 'diverged'", "of a user's network": "params.model LIKE 'my_net%'"}
    (run, *_) = Store().search("trainings", "full", outcomes[what])
    code, output, errors = command("replay", run.id, "--back", 3)
    assert code == 0 and "bitwise as recorded" in output, output + errors


@pytest.mark.slow
def test_old_studies_are_stale_and_finished_after_a_new_run(mended, command):
    code, output, errors = command("study", *STUDY, "--dry-run")
    assert code == 0 and "stale" in output and "code" in output, errors
    code, output, errors = command("study", *STUDY)
    assert code == 0 and "6 trained" in output, output + errors
    code, output, _ = command("study", *STUDY, "--dry-run")
    assert code == 0 and "Nothing to run" in output


@pytest.mark.slow
def test_old_searches_can_be_continued(mended, command):
    code, output, errors = command("study", "clipping_search", "--quick", "-p", "trials=2", "-p", "steps=8")
    assert code == 0, output + errors
