"""Plans of trainings, and the folders of results that other machines send back."""

import io
import json
import os
import tarfile

from support.bad_input import cases
from support.detached import TINY
from workbench.training import TrainResult, training_key
from workbench.training.detached.records import Record


def line(**changes):
    """Return a line of results, with some fields changed."""
    result = TrainResult(training_key(TINY, "d"), TINY, "complete", [{"step": 4, "val_acc": 0.5}], {"val_acc": 0.5})
    record = Record(result, "mine", "full", "screen", "a", None, 10.0, 20.0)
    return json.dumps(json.loads(record.to_json()) | changes)


def write(folder):
    """Write plans, and folders of results, that are cut, nested or of another kind."""
    header = '{"plan": 1, "code": "x", "trainings": 1}\n'
    plans = {
        "bare": "",
        "text": "not a plan\n",
        "version": '{"plan": 99}\n',
        "kind": "[1]\n",
        "nested": "[" * 100_000,
        "line": header + '{"key": 3}\n',
        "short": header,
        "digits": header + '{"key": ' + "9" * 5000 + "}\n",
        "bytes": bytes(range(256)),
    }
    results = {
        "bare": "",
        "no_json": "{",
        "other": '{"a": 1}\n',
        "deep": "[" * 100_000 + "\n",
        "kind": line(history={"step": 1}) + "\n",
        "outcome": line(outcome="great") + "\n",
        "step": line(history=[{"step": 2**63, "val_acc": 0.5}]) + "\n",
        "digits": '{"key": ' + "9" * 5000 + "}\n",
        "table": line(tables={"agc": "0" * 64}) + "\n",
        "bytes": bytes(range(256)),
    }
    for name, text in plans.items():
        (folder / f"{name}.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, text in results.items():
        (folder / f"results_{name}").mkdir()
        (folder / f"results_{name}" / "results.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("fifo", "loop", "folder"):
        (folder / f"results_{name}").mkdir()
    os.mkfifo(folder / "results_fifo" / "results.jsonl")
    (folder / "results_loop" / "results.jsonl").symlink_to("results.jsonl")
    (folder / "results_folder" / "results.jsonl").mkdir()
    (folder / "cut.tar").write_bytes(b"no tar")
    (folder / "nothing.tar").write_bytes(b"")
    with tarfile.open(folder / "outside.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../results.jsonl"), io.BytesIO())


def _plans(*names):
    return [(f"plan {{bad}}/{name}.jsonl", [f"{name}.jsonl"]) for name in names]


def _lines(*names):
    return [(f"import {{bad}}/results_{name}", ["results.jsonl", "1"]) for name in names]


PLANS = [
    *cases("missing", *_plans("nowhere"), *_plans("short")),
    *cases("empty", *_plans("bare")),
    *cases("wrong type", *_plans("kind")),
    *cases("wrong value", *_plans("version", "line")),
    *cases("too large", *_plans("digits")),
    *cases("too deep", *_plans("nested")),
    *cases("damaged", *_plans("text", "bytes")),
    *cases("unreadable", *_plans("pipe", "folder", "loop")),
]
IMPORTS = [
    *cases("missing", ("import {bad}/nowhere", ["{bad}/nowhere"])),
    *cases("missing", ("import {bad}/results_table", ["agc.parquet"]), code=1),
    *cases("empty", ("import {bad}/empty", ["{bad}/empty"]), ("import {bad}/nothing.tar", ["nothing.tar"])),
    *cases("wrong type", ("import {bad}/file", ["{bad}/file"])),
    *cases("wrong type", *_lines("kind"), code=1),
    *cases("wrong value", *_lines("other", "outcome"), code=1),
    *cases("wrong value", ("import {bad}/outside.tar", ["outside.tar"])),
    *cases("too large", *_lines("step", "digits"), code=1),
    *cases("too deep", *_lines("deep"), code=1),
    *cases("damaged", *_lines("no_json", "bytes"), code=1),
    *cases("damaged", ("import {bad}/cut.tar", ["cut.tar"])),
    *cases("unreadable", *((f"import {{bad}}/results_{n}", [f"results_{n}"]) for n in ("fifo", "loop", "folder"))),
]
