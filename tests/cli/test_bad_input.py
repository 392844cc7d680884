"""Bad input: every command with wrong values and damaged files.

Evidence: exit code 2, no traceback, nothing half-written. The message names the wrong value and what is allowed.
"""

import contextlib
import http.server
import pickle
import re
import resource
import shlex
import shutil
import socket
import sqlite3
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.checkout import CHECKOUT
from support.messages import missing

from workbench.lab.store import locations
from workbench.models import create_model
from workbench.weights.checkpoints import save_checkpoint

SMALL = ("-p", "steps=2", "-p", "batch_size=8", "-p", "train_size=16", "-p", "device=cpu")


EVIL = "code of the file was executed"


class Evil:
    def __reduce__(self):
        return print, (EVIL,)


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    """A folder with a damaged or unusable file of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)

    def image(place):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(folder / place)

    (folder / "empty").mkdir()
    (folder / "bare_classes" / "a").mkdir(parents=True)
    (folder / "bare_classes" / "b").mkdir()
    for i in range(12):
        image(f"one_class/only/{i}.png")
        image(f"no_class/{i}.png")
        for name in ("a", "b"):
            image(f"good/{name}/{i}.png")
            image(f"broken/{name}/{i}.png")
            image(f"no_val/train/{name}/{i}.png")
            image(f"tiny/{name}/{i}.png") if i == 0 else None
    (folder / "no_val" / "val").mkdir()
    (folder / "broken" / "a" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    cells = [{"bytes": (folder / "good" / "a" / "0.png").read_bytes(), "path": "0.png"}] * 4
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}), folder / "good.parquet")
    (folder / "cut.parquet").write_bytes((folder / "good.parquet").read_bytes()[:200])
    pq.write_table(pa.table({"label": [0, 1]}), folder / "no_image.parquet")
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 0, 1]}).slice(0, 0), folder / "no_rows.parquet")
    pq.write_table(pa.table({"image": cells, "label": [None] * 4}), folder / "no_labels.parquet")
    for name, source in (("cut_cifar", "cut.parquet"), ("strange_cifar", "no_image.parquet")):
        (folder / name / "cifar10").mkdir(parents=True)
        for split in ("train", "test"):
            shutil.copy(folder / source, folder / name / "cifar10" / f"{split}.parquet")
    torch.manual_seed(0)
    save_checkpoint(create_model("nf_resnet_tiny", 2), folder / "tiny.safetensors")
    whole = (folder / "tiny.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing.safetensors").write_bytes(b"")
    (folder / "text.pth").write_text("weights")
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"model": Evil()}, folder / "evil_zip.pth")
    np.savez(folder / "plain.npz", a=np.zeros(3))
    (folder / "folder.safetensors").mkdir()
    (folder / "file").write_text("a file where a folder is wanted")
    (folder / "binary").write_bytes(bytes(range(256)))
    texts = {
        "tag.yaml": "model: !!python/object/apply:os.system ['true']\n",
        "list.yaml": "- model\n",
        "empty.yaml": "",
        "open.yaml": "model: [nfnet_f0\n",
        "typo.yaml": "modle: nf_resnet_tiny\n",
        "kind.yaml": "model: nf_resnet_tiny\nsteps: many\n",
        "number.yaml": "3: nf_resnet_tiny\nsteps: 2\n",
        "tag_study.yaml": "question: !!python/name:os.system\nnotebook: large_batch.ipynb\n",
        "tour_study.yaml": "question: q\nnotebook: large_batch.ipynb\ntour: perhaps\n",
        "minutes_study.yaml": "question: q\nnotebook: large_batch.ipynb\nminutes: {full: soon}\n",
        "number_study.yaml": "question: q\nnotebook: large_batch.ipynb\n3: x\n",
        "up_study.yaml": "question: q\nnotebook: ../../etc/passwd\n",
        "no_cells.ipynb": "{}",
        "list.ipynb": "[]",
        "syntax.ipynb": '{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]},'
        ' "source": ["x: int = ("]}]}',
        "kind.ipynb": '{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]},'
        ' "source": ["x: print(1) = 3  # a"]}]}',
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "binary.ipynb").write_bytes(bytes(range(128, 256)))
    for name in ("no_cells", "list", "syntax", "kind", "binary"):
        shutil.copy(folder / f"{name}.ipynb", folder / f"{name}_notebook.ipynb")
        set_x = "parameters: {x: 1}\n" if name == "kind" else ""
        (folder / f"{name}_notebook.yaml").write_text(f"question: q\nnotebook: {folder}/{name}_notebook.ipynb\n{set_x}")
    (folder / "names.txt").write_text("a\n")
    return folder


def sizes_of_files(*folders):
    """The size of every file except the store's, by path. A refused command must not change them."""
    store_files = ("mlflow.db", ".store.lock", ".optuna.lock", "ui.log", "locks")
    sizes = {}
    for folder in folders:
        for f in folder.rglob("*"):
            if not any(part.startswith(store_files) for part in f.relative_to(folder).parts):
                sizes[f] = f.stat().st_size if f.is_file() else -1
    return sizes


def recorded_runs(root):
    """Runs with status RUNNING or FINISHED. A refused command must leave none."""
    with contextlib.suppress(sqlite3.Error), sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=ro", uri=True) as db:
        return db.execute("select name, status from runs where status in ('RUNNING', 'FINISHED')").fetchall()
    return []


@pytest.fixture
def refused(root, bad, command, tmp_path, monkeypatch):
    """Runs a command from an empty folder, checks that it is refused, and returns what it printed to stderr."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (root / "benchmarks").symlink_to(CHECKOUT / "benchmarks")

    def run(*arguments):
        before = sizes_of_files(root, work, bad)
        code, out, errors = command(*(str(a).replace("{bad}", str(bad)) for a in arguments))
        assert code == 2, (code, out, errors)
        assert "Traceback" not in errors and "Traceback" not in out
        assert EVIL not in errors and EVIL not in out
        assert sizes_of_files(root, work, bad) == before
        assert recorded_runs(root) == []
        return errors

    return run


EVALUATE = "evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good"
CASES = [
    # recipes and fields
    ("train {bad}/tag.yaml", ["tag.yaml", "python/object"]),
    ("train {bad}/list.yaml", ["list.yaml", "TrainConfig"]),
    ("train {bad}/empty.yaml", ["empty.yaml", "TrainConfig"]),
    ("train {bad}/open.yaml", ["open.yaml", "YAML"]),
    ("train {bad}/typo.yaml", ["modle", "model"]),
    ("train {bad}/kind.yaml", ["steps", "many", "int"]),
    ("train {bad}/number.yaml", ["TrainConfig", "3", "base_lr"]),
    ("train {bad}/binary.yaml", ["binary.yaml", "utf-8"]),
    ("train {bad}/nowhere.yaml", ["nowhere.yaml", "No such file"]),
    ("train {bad}/folder.safetensors", ["folder.safetensors", "cifar"]),
    ("train -p =3", ["=3", "NAME=VALUE"]),
    ("train -p steps=[", ["steps", "[", "YAML"]),
    ("train -p seed=1.5", ["seed", "1.5", "int"]),
    ("train -p base_lr=.inf", ["base_lr", "inf"]),
    ("train -p model_args=3 -p steps=1", ["model_args", "3", "dict"]),
    ("train -p 'model_args={widht: 1.0}' -p steps=1", ["nf_resnet_tiny", "widht", "width"]),
    ("train -p 'model_args={width: wide}' -p steps=1", ["width", "wide"]),
    ("train -p device=tpu -p steps=1", ["device", "tpu", "cpu"]),
    ("train -p device=cuda:99 -p steps=1", ["device", "cuda:99"]),
    ("train -p batch_size=9999 -p steps=1", ["batch_size", "9999", "3500"]),
    ("train -p clip_exempt=[3] -p steps=1", ["clip_exempt", "[3]"]),
    ("train --save {bad}/file/x.safetensors -p steps=1", ["file/x.safetensors"]),
    ("train --save x.txt -p steps=1", ["x.txt", ".safetensors"]),
    ("train --save {bad}/folder.safetensors -p steps=1", ["folder.safetensors"]),
    # data sets
    ("train -p data={bad}/empty -p steps=1", ["{bad}/empty", "0"]),
    ("train -p data={bad}/one_class -p steps=1", ["{bad}/one_class", "1"]),
    ("train -p data={bad}/no_class -p steps=1", ["{bad}/no_class", "0"]),
    ("train -p data={bad}/bare_classes -p steps=1", ["{bad}/bare_classes", "0"]),
    ("train -p data={bad}/broken -p steps=1", ["broken/a/3.png", "unreadable", "skip"]),
    ("train -p data={bad}/no_val -p steps=1", ["no_val/val", "a, b"]),
    ("train -p data={bad}/tiny -p steps=1", ["{bad}/tiny", "val"]),
    ("train -p data={bad}/good.parquet -p steps=1", ["data", "good.parquet"]),
    ("train -p data= -p steps=1", ["data"]),
    ("train -p data={bad}/good -p image_size=-3 -p steps=1", ["image_size", "-3"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/cut.parquet", ["cut.parquet"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/no_rows.parquet", ["no_rows.parquet"]),
    (
        "evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/no_labels.parquet",
        ["no_labels.parquet", "label", "null"],
    ),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/empty", ["{bad}/empty", "parquet"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/file", ["data", "{bad}/file"]),
    # weights
    ("train -p weights={bad}/nowhere.safetensors -p steps=1", ["nowhere.safetensors"]),
    ("train -p model=nfnet_micro -p weights={bad}/tiny.safetensors -p steps=1", ["nf_resnet_tiny", "nfnet_micro"]),
    ("evaluate nfnet_micro --weights {bad}/tiny.safetensors --data {bad}/good", ["nf_resnet_tiny", "nfnet_micro"]),
    ("evaluate nf_resnet_tiny --weights {bad}/folder.safetensors --data {bad}/good", ["folder.safetensors"]),
    ("evaluate nf_resnet_tiny --weights {bad}/binary --data {bad}/good", ["{bad}/binary", ".npz", ".safetensors"]),
    (f"{EVALUATE} --style cropp", ["cropp", "crop"]),
    (f"{EVALUATE} --workers 0", ["workers", "0"]),
    (f"{EVALUATE} --image-size 9999", ["9999", "4096"]),
    (f"{EVALUATE} --classes {{bad}}/binary", ["{bad}/binary", "utf-8"]),
    (f"{EVALUATE} --classes {{bad}}/names.txt", ["1", "2"]),
    (f"{EVALUATE} --device cuda:x", ["device", "cuda:x", "cpu"]),
    ("models convert {bad}/cut.safetensors x.pth", ["cut.safetensors"]),
    ("models convert {bad}/nothing.safetensors x.pth", ["nothing.safetensors"]),
    ("models convert {bad}/text.pth x.safetensors", ["text.pth"]),
    ("models convert {bad}/evil.pth x.safetensors", ["evil.pth"]),
    ("models convert {bad}/evil_zip.pth x.safetensors", ["evil_zip.pth"]),
    ("models convert {bad}/plain.npz x.safetensors", ["plain.npz"]),
    ("models convert {bad}/tiny.safetensors {bad}/file/x.pth", ["file/x.pth"]),
    ("models export {bad}/tiny.safetensors {bad}/file/x.pt2", ["file/x.pt2"]),
    ("models export {bad}/tiny.safetensors x.tflite", ["x.tflite", ".onnx", ".pt2"]),
    ("models export {bad}/text.pth x.pt2", ["text.pth"]),
    ("models download nothing_like_it", ["nothing_like_it", "nfnet_f0"]),
    ("models nf*x", ["nf*x", "nf_regnet_b0"]),
    # studies and notebooks
    ("study {bad}/tag_study.yaml", ["tag_study.yaml", "os.system"]),
    ("study {bad}/tour_study.yaml", ["tour_study.yaml", "tour"]),
    ("study {bad}/minutes_study.yaml", ["minutes_study.yaml", "minutes.full"]),
    ("study {bad}/number_study.yaml", ["number_study.yaml", "3", "question"]),
    ("study {bad}/up_study.yaml", ["notebook", "passwd"]),
    ("study {bad}/binary.yaml", ["binary.yaml", "utf-8"]),
    ("study {bad}/bare_classes", ["study", "bare_classes"]),
    ("study {bad}/no_cells_notebook.yaml", ["no_cells_notebook.ipynb", "cells"]),
    ("study {bad}/list_notebook.yaml", ["list_notebook.ipynb"]),
    ("study {bad}/binary_notebook.yaml", ["binary_notebook.ipynb", "utf-8"]),
    ("study {bad}/syntax_notebook.yaml", ["syntax_notebook.ipynb", "'('"]),
    ("study {bad}/kind_notebook.yaml", ["print(1)", "PositiveInt"]),
    ("study large_batch -p seeds=3", ["seeds", "3", "[0, 1]"]),
    ("study large_batch -p batch_sizes=[0]", ["batch_sizes", "[0]", "PositiveInt", "[64]"]),
    ("study large_batch -p weight_decay=-1", ["weight_decay", "-1", "NonNegativeFloat"]),
    ("study large_batch -p opponents=[BN+AGX]", ["opponents", "BN+AGX", "BN+AGC"]),
    ("study large_batch -p lr_scaling=liner", ["lr_scaling", "liner", "linear"]),
    ("study latency -p clips=[]", ["clips", "[]", "[0.01, 0.16]"]),
    ("study large_batch --quick -p data={bad}/nowhere", ["data", "{bad}/nowhere"]),
    ("study large_batch --dry-run -p clip=nan", ["clip", "nan", "0.01"]),
    ("study large_batch --dry-run -p lrs=[0.1,.inf]", ["lrs", "[0.1, inf]", "[0.4, 1.6, 6.4]"]),
    ("study own_network --dry-run -p model=nf_resnet5", ["nf_resnet5", "nf_resnet50"]),
    ("study large_batch --quick --plan {bad}/empty", ["{bad}/empty", ".jsonl"]),
    ("study large_batch --all", ["large_batch", "--all"]),
    ("study -p clip=0.1", ["-p", "0"]),
    # files to write, before anything is read
    ("compare nothing --csv {bad}/empty", ["{bad}/empty", ".csv"]),
    ("compare nothing --csv {bad}/file/t.csv", ["file/t.csv"]),
    ("compare nothing --curves {bad}/file/c.png", ["file/c.png"]),
    ("claims --csv {bad}/file/t.csv", ["file/t.csv"]),
    # the other commands
    ("check {bad}/file:net", ["{bad}/file"]),
    ("check {bad}/nowhere.py:net", ["nowhere.py"]),
    ("check nf_resnet_tiny --data {bad}/broken", ["broken/a/3.png"]),
    ("check nf_resnet_tiny --device tpu", ["device", "tpu", "cpu"]),
    ("check nf_resnet_tiny -p width=[", ["width", "[", "YAML"]),
    ("bench agcc", ["agcc", "agc_step"]),
    ("bench --device tpu", ["tpu", "cpu"]),
    ("bench --rounds 0", ["--rounds", "1"]),
    ("doctor --fixx", ["--fixx"]),
    ("doctor now", ["now"]),
    ("ui --port 70000", ["--port", "70000", "65535"]),
    ("ui --host no.such.host.invalid", ["no.such.host.invalid", "--host"]),
    ("lab --port 70000", ["--port", "70000", "65535"]),
]


@pytest.mark.parametrize(("line", "names"), CASES, ids=[line.replace("{bad}/", "") for line, _ in CASES])
def test_bad_input_is_refused_with_the_value_and_what_is_allowed(refused, bad, line, names):
    errors = refused(*shlex.split(line))
    assert missing(errors, [name.replace("{bad}", str(bad)) for name in names]) == [], errors


def test_each_row_fails_without_any_one_of_its_names():
    assert len(CASES) >= 40
    for line, names in CASES:
        for i, name in enumerate(names):
            others = "workbench: Refused " + ", ".join(names[:i] + names[i + 1 :])
            assert missing(others, names) == [name], line


# ---- the environment


@pytest.mark.parametrize(
    ("variable", "value", "names"),
    [
        ("WORKBENCH_ROOT", "{bad}/nowhere", ["WORKBENCH_ROOT", "{bad}/nowhere"]),
        ("WORKBENCH_ROOT", "{bad}/file", ["WORKBENCH_ROOT", "{bad}/file"]),
        ("MLFLOW_TRACKING_URI", "sqlite:///{bad}/file/x.db", ["sqlite:///{bad}/file/x.db", "MLFLOW_TRACKING_URI"]),
        ("MLFLOW_TRACKING_URI", "sqlite:///{bad}/binary", ["sqlite:///{bad}/binary", "MLFLOW_TRACKING_URI"]),
        ("MLFLOW_TRACKING_URI", "nonsense://x", ["nonsense://x"]),
        ("MLFLOW_TRACKING_URI", "{bad}/empty", ["{bad}/empty"]),
        ("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:9/x", ["postgresql://127.0.0.1:9/x"]),
        ("MLFLOW_TRACKING_URI", "http://", ["MLFLOW_TRACKING_URI", "http://"]),
        (
            "MLFLOW_TRACKING_URI",
            "http://no.such.host.invalid:5000",
            ["MLFLOW_TRACKING_URI", "http://no.such.host.invalid:5000"],
        ),
        ("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9", ["MLFLOW_TRACKING_URI", "127.0.0.1:9"]),
    ],
)
def test_a_bad_environment_variable_is_refused_with_its_value(refused, bad, monkeypatch, variable, value, names):
    monkeypatch.setenv(variable, value.replace("{bad}", str(bad)))
    started = time.monotonic()
    errors = refused("train", *SMALL)
    assert time.monotonic() - started < 20
    assert missing(errors, [name.replace("{bad}", str(bad)) for name in names]) == [], errors
    assert "secret" not in errors


def test_damaged_data_is_refused_with_its_file_or_columns(refused, bad, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(bad / "cut_cifar"))
    assert missing(refused("train", *SMALL, "-p", "data=cifar10"), [f"{bad}/cut_cifar/cifar10"]) == []
    monkeypatch.setenv("WORKBENCH_DATA", str(bad / "strange_cifar"))
    assert missing(refused("train", *SMALL, "-p", "data=cifar10"), ["cifar10", "img", "image", "label"]) == []


@contextlib.contextmanager
def server(answer):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        served.daemon_threads = True
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_a_server_without_a_store_or_without_an_answer_is_named(refused, monkeypatch):
    with server(lambda request: request.send_error(404)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert missing(refused("doctor"), [address]) == []
    monkeypatch.setattr(locations, "PATIENCE", 0.3)
    with server(lambda request: time.sleep(2)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert missing(refused("doctor"), ["MLFLOW_TRACKING_URI", address]) == []


@pytest.mark.parametrize("command_line", [["doctor"], ["train", *SMALL], ["ui"], ["study", "large_batch", "--quick"]])
def test_a_store_of_a_newer_mlflow_is_refused_with_both_versions(refused, root, command_line):
    import mlflow

    with sqlite3.connect(root / "mlruns" / "mlflow.db") as db:
        db.execute("update alembic_version set version_num = 'ffff00000000'")
    errors = refused(*command_line)
    assert missing(errors, ["ffff00000000", mlflow.__version__]) == []
    assert not re.search(r"\bmove\b", errors, re.IGNORECASE)  # the file is not damaged


def test_a_store_of_an_older_mlflow_is_refused_with_the_upgrade_command(refused, root):
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as db:
        db.execute("update alembic_version set version_num = '451aebb31d03'")
    errors = refused("doctor")
    assert missing(errors, [f"mlflow db upgrade sqlite:///{root}/mlruns/mlflow.db"]) == []
    assert not re.search(r"\bmove\b", errors, re.IGNORECASE)  # the file is not damaged


@pytest.mark.parametrize(
    "what", ["mlruns is a file", "the lock is a folder", "the database is a folder", "no database"]
)
def test_a_damaged_store_is_refused_with_its_place_and_the_variable_that_changes_it(refused, root, what):
    store = root / "mlruns"
    if what == "mlruns is a file":
        shutil.rmtree(store)
        store.write_text("")
    elif what == "the lock is a folder":
        (store / ".store.lock").unlink()
        (store / ".store.lock").mkdir()
    else:
        (store / "mlflow.db").unlink()
        (store / "mlflow.db").mkdir() if "folder" in what else (store / "mlflow.db").write_text("no database" * 99)
    errors = refused("train", *SMALL)
    assert str(store) in errors and ("WORKBENCH_ROOT" in errors or "MLFLOW_TRACKING_URI" in errors)


def test_a_taken_port_is_refused_with_its_number(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("ui", "lab"):
            assert missing(refused(name, "--port", port), [str(port), "127.0.0.1", "--port"]) == []


# ---- disks that are full or read-only


@contextlib.contextmanager
def files_of_at_most(size):
    """Imitates a full disk: no file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.npz"])
def test_weights_that_do_not_fit_on_the_disk_are_not_half_written(refused, bad, name):
    with files_of_at_most(10_000):
        errors = refused("models", "convert", f"{bad}/tiny.safetensors", name)
    assert missing(errors, [name]) == []


def test_a_store_that_does_not_fit_on_the_disk_is_refused_with_the_variable_that_moves_it(refused, root):
    with files_of_at_most(10_000):
        errors = refused("train", *SMALL)
    assert "disk" in errors and "WORKBENCH_ROOT" in errors


@pytest.mark.slow
def test_a_training_whose_weights_do_not_fit_on_the_disk_fails_without_a_traceback(root, command, tmp_path):
    from workbench.lab import Store

    size = (root / "mlruns" / "mlflow.db").stat().st_size
    with files_of_at_most(size + 2**18):
        code, _, errors = command(
            "train", *SMALL, "-p", "model=nf_resnet26_cifar", "--save", tmp_path / "x.safetensors"
        )
    assert code == 2 and missing(errors, ["x.safetensors"]) == [] and "Traceback" not in errors
    assert not (tmp_path / "x.safetensors").exists()
    (run,) = Store().runs("trainings")
    assert run.status == "FAILED"


def test_a_read_only_store_is_refused_with_the_variable_that_moves_it(root, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder here for the odd address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{root}/mlruns/mlflow.db?mode=ro&uri=true")
    code, _, errors = command("train", *SMALL)
    assert code == 2 and "Traceback" not in errors and recorded_runs(root) == []
    assert "readonly database" in errors and "WORKBENCH_ROOT" in errors
