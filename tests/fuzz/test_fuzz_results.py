"""Damaged plans and folders of results. Evidence: every input is read, reported as damaged, or refused."""

import dataclasses
import io
import json
import shutil
import tarfile

import pandas as pd
import pytest
from support.detached import TINY
from support.mutations import meet, mutated, odd_tree

from workbench.files import sha256
from workbench.lab import Store
from workbench.lab.jobs.import_results import import_results
from workbench.lab.store.stored_results import parse_result
from workbench.training import TrainResult, training_key
from workbench.training.detached.plan import Planned, read_plan, write_plan
from workbench.training.detached.records import RESULTS, Record
from workbench.training.detached.tables import table_file
from workbench.training.detached.transport import pack_folder

pytestmark = pytest.mark.slow
TEXTS = 600  # plans, lines and results, per kind of damage
IMPORTS = 60  # folders and tars, per kind of damage; each may make a run

TYPES = [tarfile.REGTYPE] * 3
TYPES += [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]


def planned():
    return Planned(training_key(TINY, "d"), TINY, "d", "mine", owner="o")


def result():
    history = [{"step": 0, "val_acc": 0.5, "train_loss": 1.0}, {"step": 4, "val_acc": 0.6, "train_loss": 0.5}]
    key = training_key(TINY, "d")
    versions = {"torch": "2"}
    return TrainResult(key, TINY, "complete", history, {"val_acc": 0.6}, versions=versions, data_digest="d")


@pytest.fixture
def folder(tmp_path):
    """Folder of a detached run with one training and one table."""
    folder = tmp_path / "out"
    file = table_file(folder, result().key, "agc")
    file.parent.mkdir(parents=True)
    pd.DataFrame({"step": [1, 2], "parameter": ["a", "b"], "norm": [0.1, 0.2]}).to_parquet(file)
    record = Record(result(), "mine", "full", "screen", "a", "o", 10.0, 20.0, {"agc": sha256(file)})
    (folder / RESULTS).write_text(record.to_json() + "\n")
    return folder


def test_plans(tmp_path, rng):
    file = write_plan(tmp_path / "plan.jsonl", [planned()])
    whole = file.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    cases = [mutated(whole, rng) for _ in range(TEXTS)]
    cases += ["\n".join(map(json.dumps, odd_tree(lines, rng))).encode() for _ in range(TEXTS)]

    def read(content):
        file.write_bytes(content)
        read_plan(file)

    meet(cases, read)


def test_lines_of_results(rng):
    whole = Record(result(), "mine", "full", "screen", "a", "o", 10.0, 20.0, {"agc": "0"}).to_json()
    cases = [mutated(whole.encode(), rng).decode(errors="replace") for _ in range(TEXTS)]
    cases += [json.dumps(odd_tree(json.loads(whole), rng)) for _ in range(TEXTS)]
    meet(cases, Record.from_json)


def test_results_of_the_store(rng):
    whole = result().to_json()
    cases = [mutated(whole.encode(), rng) for _ in range(TEXTS)]
    cases += [json.dumps(odd_tree(json.loads(whole), rng)).encode() for _ in range(TEXTS)]
    meet(cases, lambda text: parse_result(text, "run").as_train_result().row())


def test_folders(root, folder, rng):
    store, results = Store(), folder / RESULTS
    line, config = json.loads(results.read_text()) | {"code": "another"}, dataclasses.asdict(TINY)
    rows = table_file(folder, line["key"], "agc").read_bytes()

    def read(_):
        odd = line | {"key": rng.randbytes(32).hex()}  # the key of other code cannot be checked
        table = table_file(folder, odd["key"], "agc")
        table.parent.mkdir()
        table.write_bytes(mutated(rows, rng) if rng.random() < 0.4 else rows)
        odd["tables"] = {"agc": sha256(table)}
        if rng.random() < 0.3:
            odd["config"] = odd_tree(config, rng)
        elif rng.random() < 0.8:
            odd = odd_tree(odd, rng)
        results.write_text(json.dumps(odd) + "\n")
        import_results(folder, store)

    meet(range(4 * IMPORTS), read)
    runs = store.search("trainings", "full")
    assert {run.status for run in runs} == {"FINISHED"} and len(runs) > IMPORTS / 2


def test_tars(root, folder, rng):
    store, tar = Store(), folder.with_name("copy.tar")
    shutil.move(pack_folder(folder), tar)
    whole = tar.read_bytes()[:9000]

    def odd_members():
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as made:
            for _ in range(2):
                folder = rng.choice(["out", "out", "/etc", "..", "out/../..", "a" * 300, "\udcff", "out/tables/x"])
                member = tarfile.TarInfo(f"{folder}/{rng.choice([RESULTS, 'x.parquet', '', 'a.jsonl'])}")
                member.type, member.linkname = rng.choice(TYPES), "/etc/passwd"
                member.mode, member.mtime = rng.choice([0o644, 0, 0o7777]), rng.choice([0, -1, 2**33])
                member.size = 3 if member.isreg() else 0
                made.addfile(member, io.BytesIO(b"{}\n"))
        return out.getvalue()

    def read(content):
        tar.write_bytes(content)
        import_results(tar, store)

    cases = [mutated(whole, rng) for _ in range(2 * IMPORTS)] + [odd_members() for _ in range(3 * IMPORTS)]
    headers = [bytearray(whole) for _ in range(3 * IMPORTS)]
    for header in headers:  # damage within the header of the first member, with the right checksum
        at = rng.randrange(512)
        header[at : at + 4] = mutated(bytes(header[at : at + 4]), rng)[:4].ljust(4, b"\xff")
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    meet(cases + [bytes(header) for header in headers], read)
