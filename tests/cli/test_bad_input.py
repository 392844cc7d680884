"""What a user gets wrong. Evidence: every command with input that cannot be meant, and with files that are none: exit code
2, one sentence with value, rule and cure, no traceback, and nothing half-written."""

import contextlib
import http.server
import pickle
import resource
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

from workbench.lab.store import locations
from workbench.models import create_model
from workbench.weights.checkpoints import save_checkpoint

SMALL = ("-p", "steps=2", "-p", "batch_size=8", "-p", "train_size=16", "-p", "device=cpu")


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.fixture(scope="session")
def bad(tmp_path_factory):
    """A folder with every kind of file that is none."""
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
        "syntax.ipynb": '{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["x: int = ("]}]}',
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


def tree(*folders):
    """What must be as before: every file but the store's own."""
    store_files = ("mlflow.db", ".store.lock", ".optuna.lock", "ui.log", "locks")
    sizes = {}
    for folder in folders:
        for f in folder.rglob("*"):
            if not any(part.startswith(store_files) for part in f.relative_to(folder).parts):
                sizes[f] = f.stat().st_size if f.is_file() else -1
    return sizes


def left_open(root):
    """Runs that say RUNNING, or FINISHED, after a command that was refused."""
    with contextlib.suppress(sqlite3.Error), sqlite3.connect(f"file:{root}/mlruns/mlflow.db?mode=ro", uri=True) as db:
        return db.execute("select name, status from runs where status in ('RUNNING', 'FINISHED')").fetchall()
    return []


@pytest.fixture
def refused(root, bad, command, tmp_path, monkeypatch):
    """Runs a command that must be refused, from a folder of its own, and returns the sentence."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (root / "benchmarks").symlink_to(CHECKOUT / "benchmarks")

    def run(*arguments):
        before = tree(root, work, bad)
        code, out, errors = command(*(str(a).replace("{bad}", str(bad)) for a in arguments))
        assert code == 2, (code, out, errors)
        assert "Traceback" not in errors and "Traceback" not in out
        assert tree(root, work, bad) == before
        assert left_open(root) == []
        return errors

    return run


CASES = [
    # recipes and fields
    ("train {bad}/tag.yaml", ["tag.yaml", "python/object"]),
    ("train {bad}/list.yaml", ["list.yaml must hold fields of TrainConfig"]),
    ("train {bad}/empty.yaml", ["empty.yaml must hold fields of TrainConfig"]),
    ("train {bad}/open.yaml", ["cannot read", "open.yaml as YAML"]),
    ("train {bad}/typo.yaml", ["'modle': did you mean 'model'"]),
    ("train {bad}/kind.yaml", ["`steps` (='many') must be of type"]),
    ("train {bad}/number.yaml", ["unknown field of TrainConfig '3'"]),
    ("train {bad}/binary.yaml", ["cannot read", "binary.yaml as YAML"]),
    ("train {bad}/nowhere.yaml", ["cannot read", "No such file"]),
    ("train {bad}/folder.safetensors", ["unknown"]),
    ("train -p =3", ["must have the form NAME=VALUE"]),
    ("train -p steps=[", ["`steps` (=[) is no value in YAML"]),
    ("train -p seed=1.5", ["`seed` (=1.5) must be of type int"]),
    ("train -p base_lr=.inf", ["`base_lr` (=inf) must be above 0 and finite"]),
    ("train -p model_args=3 -p steps=1", ["`model_args` (=3) must be of type dict"]),
    ("train -p model_args={widht:\N{SPACE}1.0} -p steps=1", ["'widht': did you mean 'width'"]),
    ("train -p model_args={width:\N{SPACE}wide} -p steps=1", ["`width`", "must be a number"]),
    ("train -p device=tpu -p steps=1", ["device", "tpu"]),
    ("train -p device=cuda:99 -p steps=1", ["cuda:99"]),
    ("train -p batch_size=9999 -p steps=1", ["`batch_size` (=9999)", "at most the number of training images"]),
    ("train -p clip_exempt=[3] -p steps=1", ["`clip_exempt`", "list of names"]),
    ("train --save {bad}/file/x.safetensors -p steps=1", ["file/x.safetensors"]),
    ("train --save x.txt -p steps=1", ["x.txt must end in .safetensors"]),
    ("train --save {bad}/folder.safetensors -p steps=1", ["no file that could be replaced"]),
    # data sets
    ("train -p data={bad}/empty -p steps=1", ["at least two folders of images", "found 0"]),
    ("train -p data={bad}/one_class -p steps=1", ["at least two folders of images", "found 1"]),
    ("train -p data={bad}/no_class -p steps=1", ["at least two folders of images", "found 0"]),
    ("train -p data={bad}/bare_classes -p steps=1", ["at least two folders of images"]),
    ("train -p data={bad}/broken -p steps=1", ["cannot read", "3.png as an image", "unreadable=skip"]),
    ("train -p data={bad}/no_val -p steps=1", ["no_val/val holds no images of the classes a, b"]),
    ("train -p data={bad}/tiny -p steps=1", ["split of", "is empty: add images"]),
    ("train -p data={bad}/good.parquet -p steps=1", ["must be an existing folder of images"]),
    ("train -p data= -p steps=1", ["`data`"]),
    ("train -p data={bad}/good -p image_size=-3 -p steps=1", ["`image_size` (=-3) must be above 0"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/cut.parquet", ["cut.parquet as parquet"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/no_rows.parquet", ["holds no rows"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/no_labels.parquet", ["whole numbers"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/empty", ["no images in class folders"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/file", ["must be a folder of class"]),
    # weights
    ("train -p weights={bad}/nowhere.safetensors -p steps=1", ["nowhere.safetensors"]),
    ("train -p model=nfnet_micro -p weights={bad}/tiny.safetensors -p steps=1", ["nf_resnet_tiny", "nfnet_micro"]),
    ("evaluate nfnet_micro --weights {bad}/tiny.safetensors --data {bad}/good", ["nf_resnet_tiny", "nfnet_micro"]),
    ("evaluate nf_resnet_tiny --weights {bad}/folder.safetensors --data {bad}/good", ["folder.safetensors"]),
    ("evaluate nf_resnet_tiny --weights {bad}/binary --data {bad}/good", ["binary"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --style cropp", ["mean 'crop'"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --workers 0", ["`workers` (=0)"]),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --image-size 9999", ["at most 4096"]),
    (
        "evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --classes {bad}/binary",
        ["cannot read", "binary"],
    ),
    (
        "evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --classes {bad}/names.txt",
        ["names 1 outputs, but the network has 2"],
    ),
    ("evaluate nf_resnet_tiny --weights {bad}/tiny.safetensors --data {bad}/good --device cuda:x", ["cuda:x"]),
    ("models convert {bad}/cut.safetensors x.pth", ["cut.safetensors"]),
    ("models convert {bad}/nothing.safetensors x.pth", ["nothing.safetensors"]),
    ("models convert {bad}/text.pth x.safetensors", ["text.pth"]),
    ("models convert {bad}/evil.pth x.safetensors", ["evil.pth", "nothing in it was executed"]),
    ("models convert {bad}/evil_zip.pth x.safetensors", ["evil_zip.pth", "nothing in it was executed"]),
    ("models convert {bad}/plain.npz x.safetensors", ["plain.npz"]),
    ("models convert {bad}/tiny.safetensors {bad}/file/x.pth", ["cannot write", "choose another place"]),
    ("models export {bad}/tiny.safetensors {bad}/file/x.pt2", ["cannot write", "choose another"]),
    ("models export {bad}/text.pth x.pt2", ["text.pth"]),
    ("models download nothing_like_it", ["nothing_like_it"]),
    ("models nf*x", ["unknown model 'nf*x'"]),
    # studies and notebooks
    ("study {bad}/tag_study.yaml", ["is not YAML"]),
    ("study {bad}/tour_study.yaml", ["`tour`"]),
    ("study {bad}/minutes_study.yaml", ["`minutes.full`"]),
    ("study {bad}/number_study.yaml", ["unknown key in number_study.yaml '3'"]),
    ("study {bad}/up_study.yaml", ["unknown notebook"]),
    ("study {bad}/binary.yaml", ["binary.yaml"]),
    ("study {bad}/bare_classes", ["unknown study 'bare_classes'"]),
    ("study {bad}/no_cells_notebook.yaml", ["is not a notebook"]),
    ("study {bad}/list_notebook.yaml", ["is not a notebook"]),
    ("study {bad}/binary_notebook.yaml", ["is not a notebook"]),
    ("study {bad}/syntax_notebook.yaml", ["syntax_notebook.ipynb, parameters cell"]),
    ("study {bad}/kind_notebook.yaml", ["the annotation `print(1)` must be made of"]),
    ("study large_batch -p seeds=3", ["`seeds` (=3) must be of type"]),
    ("study large_batch -p batch_sizes=[0]", ["`batch_sizes` (=[0]) must be of type list[PositiveInt]", "[64]"]),
    ("study large_batch -p weight_decay=-1", ["`weight_decay` (=-1) must be of type NonNegativeFloat"]),
    ("study large_batch -p opponents=[BN+AGX]", ["opponents` 'BN+AGX': did you mean 'BN+AGC'?"]),
    ("study large_batch -p lr_scaling=liner", ["lr_scaling` 'liner': did you mean 'linear'?"]),
    ("study latency -p clips=[]", ["`clips` (=[]) must have at least one entry", "[0.01, 0.16]"]),
    ("study large_batch --quick -p data={bad}/nowhere", ["nowhere"]),
    ("study large_batch --dry-run -p clip=nan", ["`clip` (=nan) must be finite"]),
    ("study large_batch --dry-run -p lrs=[0.1,.inf]", ["`lrs` (=[0.1, inf]) must be finite"]),
    ("study own_network --dry-run -p model=nf_resnet5", ["unknown model 'nf_resnet5': did you mean"]),
    ("study large_batch --quick --plan {bad}/empty", ["must end in .jsonl"]),
    # files to write, before anything is read
    ("compare nothing --csv {bad}/empty", ["empty must end in .csv"]),
    ("compare nothing --csv {bad}/file/t.csv", ["cannot write", "choose another place"]),
    ("compare nothing --curves {bad}/file/c.png", ["cannot write", "choose another place"]),
    ("claims --csv {bad}/file/t.csv", ["cannot write", "choose another place"]),
    # the other commands
    ("check {bad}/file:net", ["cannot import"]),
    ("check {bad}/nowhere.py:net", ["there is no file"]),
    ("check nf_resnet_tiny --data {bad}/broken", ["3.png as an image"]),
    ("check nf_resnet_tiny --device tpu", ["tpu"]),
    ("check nf_resnet_tiny -p width=[", ["is no value in YAML"]),
    ("bench agcc", ["unknown benchmark 'agcc': did you mean"]),
    ("bench --device tpu", ["unknown device 'tpu'"]),
    ("bench --rounds 0", ["--rounds", "greater than or equal to 1"]),
    ("doctor --fixx", ["--fixx"]),
    ("doctor now", ["now"]),
    ("ui --port 70000", ["port 70000", "65535"]),
    ("ui --host no.such.host.invalid", ["the host no.such.host.invalid is not known", "--host"]),
    ("lab --port 70000", ["port 70000", "65535"]),
]


@pytest.mark.parametrize(("line", "pieces"), CASES, ids=[line.replace("{bad}/", "") for line, _ in CASES])
def test_what_cannot_be_meant_is_one_sentence(refused, bad, line, pieces):
    errors = refused(
        *(
            word.replace("\N{NO-BREAK SPACE}", " ")
            for word in line.replace(":\N{SPACE}", ":\N{NO-BREAK SPACE}").split(" ")
        )
    )
    for piece in pieces:
        assert piece in errors, errors
    assert "executed" not in errors.replace("nothing in it was executed", "")


def test_there_are_at_least_forty():
    assert len(CASES) >= 40


# ---- the environment


@pytest.mark.parametrize(
    ("name", "value", "pieces"),
    [
        ("WORKBENCH_ROOT", "{bad}/nowhere", ["WORKBENCH_ROOT", "must be an existing folder"]),
        ("WORKBENCH_ROOT", "{bad}/file", ["WORKBENCH_ROOT", "must be an existing folder"]),
        ("MLFLOW_TRACKING_URI", "sqlite:///{bad}/file/x.db", ["cannot open the store", "MLFLOW_TRACKING_URI"]),
        ("MLFLOW_TRACKING_URI", "sqlite:///{bad}/binary", ["cannot open the store", "not a database"]),
        ("MLFLOW_TRACKING_URI", "nonsense://x", ["cannot open the store nonsense://x"]),
        ("MLFLOW_TRACKING_URI", "{bad}/empty", ["cannot open the store"]),
        ("MLFLOW_TRACKING_URI", "postgresql://127.0.0.1:9/x", ["cannot open the store postgresql://"]),
        ("MLFLOW_TRACKING_URI", "http://", ["MLFLOW_TRACKING_URI"]),
        ("MLFLOW_TRACKING_URI", "http://no.such.host.invalid:5000", ["nobody answers", "start the server"]),
        ("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9", ["nobody answers", "127.0.0.1:9"]),
    ],
)
def test_an_environment_that_cannot_be_meant_is_one_sentence(refused, bad, monkeypatch, name, value, pieces):
    monkeypatch.setenv(name, value.replace("{bad}", str(bad)))
    started = time.monotonic()
    errors = refused("train", *SMALL)
    assert time.monotonic() - started < 20
    assert all(piece in errors for piece in pieces), errors
    assert "secret" not in errors


def test_data_that_is_cut_off_is_one_sentence(refused, bad, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(bad / "cut_cifar"))
    assert "as parquet" in refused("train", *SMALL, "-p", "data=cifar10")
    monkeypatch.setenv("WORKBENCH_DATA", str(bad / "strange_cifar"))
    assert "needs the columns img (or image) and label" in refused("train", *SMALL, "-p", "data=cifar10")


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


def test_a_server_that_is_no_store_or_says_nothing_is_one_sentence(refused, monkeypatch):

    with server(lambda request: request.send_error(404)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert f"cannot open the store {address}" in refused("doctor")
    monkeypatch.setattr(locations, "PATIENCE", 0.3)
    with server(lambda request: time.sleep(2)) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert "nobody answers at MLFLOW_TRACKING_URI" in refused("doctor")


@pytest.mark.parametrize("command_line", [["doctor"], ["train", *SMALL], ["ui"], ["study", "large_batch", "--quick"]])
def test_a_store_of_a_newer_mlflow_is_told_with_the_versions_and_the_cure(refused, root, command_line):
    import mlflow

    with sqlite3.connect(root / "mlruns" / "mlflow.db") as db:
        db.execute("update alembic_version set version_num = 'ffff00000000'")
    errors = refused(*command_line)
    assert "ffff00000000 is unknown to MLflow" in errors and mlflow.__version__ in errors
    assert "Install the version that made it" in errors and "move the file away" not in errors


def test_a_store_of_an_older_mlflow_is_told_how_to_upgrade(refused, root):
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as db:
        db.execute("update alembic_version set version_num = '451aebb31d03'")
    errors = refused("doctor")
    assert "mlflow db upgrade sqlite:///" in errors and "move the file away" not in errors


@pytest.mark.parametrize(
    "what", ["mlruns is a file", "the lock is a folder", "the database is a folder", "no database"]
)
def test_a_store_that_is_none_is_one_sentence(refused, root, what):
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


def test_a_port_that_is_taken_is_one_sentence(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for name in ("ui", "lab"):
            assert f"port {port} on 127.0.0.1 cannot be used" in refused(name, "--port", port)


# ---- disks that are full or may not be written


@contextlib.contextmanager
def files_of_at_most(size):
    """A full disk, as a process sees it: no file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.npz"])
def test_weights_that_the_disk_cannot_hold_are_not_written_by_half(refused, bad, name):
    with files_of_at_most(10_000):
        errors = refused("models", "convert", f"{bad}/tiny.safetensors", name)
    assert "cannot write" in errors and "choose another place" in errors


def test_a_store_that_the_disk_cannot_hold_is_one_sentence(refused, root):
    with files_of_at_most(10_000):
        errors = refused("train", *SMALL)
    assert "disk" in errors and "WORKBENCH_ROOT" in errors


@pytest.mark.slow
def test_a_training_whose_weights_the_disk_cannot_hold_is_one_sentence_and_failed(root, command, tmp_path):
    from workbench.lab import Store

    size = (root / "mlruns" / "mlflow.db").stat().st_size
    with files_of_at_most(size + 2**18):
        code, _, errors = command(
            "train", *SMALL, "-p", "model=nf_resnet26_cifar", "--save", tmp_path / "x.safetensors"
        )
    assert code == 2 and "cannot write" in errors and "Traceback" not in errors
    assert not (tmp_path / "x.safetensors").exists()
    (run,) = Store().runs("trainings")
    assert run.status == "FAILED"


def test_a_store_that_may_only_be_read_is_one_sentence(root, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where MLflow makes a folder for the strange address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///file:{root}/mlruns/mlflow.db?mode=ro&uri=true")
    code, _, errors = command("train", *SMALL)
    assert code == 2 and "Traceback" not in errors and left_open(root) == []
    assert "readonly database" in errors and "WORKBENCH_ROOT" in errors
