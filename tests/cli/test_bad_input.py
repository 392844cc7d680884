"""Bad input: every command with wrong values and damaged files.

Evidence: exit code 2, no traceback, nothing half-written. The message names the wrong value and what is allowed.
"""

import contextlib
import http.server
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
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


def yaml_texts():
    """YAML that is nested, large or strange."""
    bomb = "a: &a [x, x, x, x, x, x, x, x]\n"
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    return {
        "bomb.yaml": bomb + "model_args: *i\n",
        "recursive.yaml": "model_args: &x {a: *x}\n",
        "deep.yaml": "model_args: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "date.yaml": "seed: 2024-13-45\n",
        "digits.yaml": f"steps: {'9' * 5000}\n",
        "huge.yaml": "steps: 99999999999999999999999999\n",
        "unknown_tag.yaml": "seed: !sea 3\n",
        "long_name.yaml": f"{'m' * 300}: 3\n",
        "null_byte.yaml": "model: a\x00b\n",
        "deep_notebook.yaml": "question: q\nnotebook: deep.ipynb\n",
        "deep.ipynb": "[" * 100_000,
        "cell_kinds.yaml": "question: q\nnotebook: cell_kinds.ipynb\n",
        "cell_kinds.ipynb": '{"cells": [3, null]}',
    }


def user_files():
    """User networks whose file cannot be used."""
    return {
        "no_syntax.py": "def net(:\n",
        "leaves.py": "import sys\nsys.exit('bye')\n",
        "generator.py": "raise GeneratorExit\n",
        "raises.py": "1 / 0\n",
        "missing_import.py": "import no_such_module_anywhere\n",
        "nothing.py": "x = 3\n",
        "text.py": "def net(num_classes, in_channels): return 'a network'\n",
    }


def damaged_images(folder):
    """Folders of two classes in which a picture cannot be read."""
    good = (folder / "good" / "a" / "0.png").read_bytes()
    png = b"\x89PNG\r\n\x1a\n"

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    text_bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2**26))
    end = chunk(b"IDAT", zlib.compress(bytes(12 * 37))) + chunk(b"IEND", b"")
    small = struct.pack(">IIBBBBB", 12, 12, 8, 2, 0, 0, 0)
    dds = b"DDS " + struct.pack("<7I", 124, 0x1007, 12, 12, 0, 0, 0) + bytes(44)
    dds += struct.pack("<8I", 32, 4, 0x31313131, 0, 0, 0, 0, 0) + bytes(20)
    pictures = {
        "bomb_image": ("0.png", png + chunk(b"IHDR", header) + end),
        "text_image": ("0.png", png + chunk(b"IHDR", small) + text_bomb + end),
        "dds_image": ("0.png", dds),
        "cut_image": ("0.png", good[: len(good) // 2]),
        "empty_image": ("0.png", b""),
    }
    for name, (file, data) in pictures.items():
        shutil.copytree(folder / "good", folder / name)
        (folder / name / "a" / file).write_bytes(data)


def damaged_parquet(folder, cells):
    """Parquet files whose columns have other types or values."""
    tables = {
        "null_image": {"image": pa.array([None] * 4, pa.null()), "label": [0, 1, 0, 1]},
        "int_image": {"image": [1, 2, 3, 4], "label": [0, 1, 0, 1]},
        "list_image": {"image": [[1], [2], [3], [4]], "label": [0, 1, 0, 1]},
        "text_image": {"image": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]},
        "no_picture": {"image": [b"no picture"] * 4, "label": [0, 1, 0, 1]},
        "text_label": {"image": cells, "label": ["a", "b", "a", "b"]},
        "huge_label": {"image": cells, "label": [0, 1, 0, 10**9]},
        "negative_label": {"image": cells, "label": [0, 1, 0, -1]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    table = pa.table({"image": cells, "label": [0, 1, 0, 1]}).replace_schema_metadata({"huggingface": "{broken"})
    pq.write_table(table, folder / "metadata.parquet")
    data = bytearray((folder / "good.parquet").read_bytes())
    data[20:120] = bytes(100)
    (folder / "pages.parquet").write_bytes(data)


def damaged_checkpoints(folder):
    """Weights whose recorded arguments no network can have."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "tiny.safetensors")
    with safe_open(folder / "tiny.safetensors", "pt") as file:
        metadata = file.metadata()
    (name,) = [name for name, value in metadata.items() if "nf_resnet_tiny" in value]
    recipe = json.loads(metadata[name])
    recipes = {
        "wide": json.dumps(recipe | {"width": 1e9}),
        "listed": "[1, 2]",
        "named": '"nf_resnet_tiny"',
        "nested": "[" * 100_000,
        "unknown": json.dumps(recipe | {"name": "nfnet_f99"}),
    }
    for each, text in recipes.items():
        save_file(tensors, folder / f"{each}.safetensors", metadata | {name: text})


def damaged_plans_and_results(folder):
    """Plans, and folders of results, that are cut, nested or of another kind."""
    plans = {
        "empty": "",
        "text": "not a plan\n",
        "version": '{"plan": 99}\n',
        "kind": "[1]\n",
        "nested": "[" * 100_000,
        "line": '{"plan": 1, "code": "x", "trainings": 1}\n{"key": 3}\n',
    }
    for name, text in plans.items():
        (folder / f"{name}.jsonl").write_text(text)
    for name, text in {"no_json": "{", "other": '{"a": 1}\n', "deep": "[" * 100_000 + "\n"}.items():
        (folder / f"results_{name}").mkdir()
        (folder / f"results_{name}" / "results.jsonl").write_text(text)
    (folder / "results_fifo").mkdir()
    os.mkfifo(folder / "results_fifo" / "results.jsonl")
    (folder / "cut.tar").write_bytes(b"no tar")


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
    for name, text in (texts | yaml_texts() | user_files()).items():
        (folder / name).write_text(text)
    (folder / "coded.py").write_bytes(b"# \xe9\ndef net(): pass\n")
    (folder / "null.py").write_bytes(b"def net(): pass\n\x00")
    damaged_images(folder)
    damaged_parquet(folder, cells)
    damaged_checkpoints(folder)
    damaged_plans_and_results(folder)
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
    ("train {bad}/bomb.yaml", ["bomb.yaml"]),
    ("train {bad}/recursive.yaml", ["recursive.yaml"]),
    ("train {bad}/deep.yaml", ["deep.yaml"]),
    ("train {bad}/date.yaml", ["date.yaml"]),
    ("train {bad}/digits.yaml", ["digits.yaml"]),
    ("train {bad}/huge.yaml", ["steps"]),
    ("train {bad}/unknown_tag.yaml", ["unknown_tag.yaml", "sea"]),
    ("train {bad}/long_name.yaml", ["TrainConfig"]),
    ("train {bad}/null_byte.yaml", ["null_byte.yaml"]),
    ("train -p steps=99999999999999999999999999", ["steps", "99999999999999999999999999"]),
    ("train -p batch_size=99999999999999999999999999 -p steps=1", ["batch_size", "99999999999999999999999999"]),
    (f"train -p seed={'9' * 5000} -p steps=1", ["seed"]),
    ("train -p seed=2024-13-45", ["seed", "2024-13-45"]),
    ("train -p 'model_args=&x {{a: *x}}' -p steps=1".replace("{{", "{").replace("}}", "}"), ["model_args"]),
    (f"train -p 'clip_exempt={'[' * 3000}' -p steps=1", ["clip_exempt"]),
    (f"train -p {'m' * 300}=1", ["TrainConfig"]),
    ("train -p steps 3", ["-p", "steps", "steps=3"]),
    ("train lr=0.1", ["lr=0.1", "-p"]),
    ("study large_batch clip=0.1", ["clip=0.1", "-p"]),
    ("train -p data=~nobody-here/x -p steps=1", ["~nobody-here/x"]),
    # a user's file
    ("check {bad}/no_syntax.py:net", ["no_syntax.py", "1"]),
    ("check {bad}/coded.py:net", ["coded.py"]),
    ("check {bad}/null.py:net", ["null.py"]),
    ("check {bad}/leaves.py:net", ["leaves.py"]),
    ("check {bad}/generator.py:net", ["generator.py"]),
    ("check {bad}/raises.py:net", ["raises.py", "1"]),
    ("check {bad}/missing_import.py:net", ["missing_import.py", "no_such_module_anywhere"]),
    ("check {bad}/nothing.py:net", ["nothing.py", "net"]),
    ("check {bad}/text.py:net", ["text.py"]),
    ("train -p model={bad}/leaves.py:net -p steps=1", ["leaves.py"]),
    # images
    *(
        (f"train -p data={{bad}}/{name} -p image_size=12 -p steps=1", [f"{name}/a/0.png"])
        for name in ("bomb_image", "text_image", "dds_image", "cut_image", "empty_image")
    ),
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
    *(
        (
            f"evaluate nf_resnet_tiny --weights {{bad}}/tiny.safetensors --data {{bad}}/{name}.parquet",
            [f"{name}.parquet"],
        )
        for name in (
            "null_image",
            "int_image",
            "list_image",
            "text_image",
            "no_picture",
            "text_label",
            "huge_label",
            "negative_label",
            "metadata",
            "pages",
        )
    ),
    # weights
    *(
        (f"evaluate nf_resnet_tiny --weights {{bad}}/{name}.safetensors --data {{bad}}/good", [f"{name}.safetensors"])
        for name in ("wide", "listed", "named", "nested", "unknown")
    ),
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
    ("study {bad}/deep_notebook.yaml", ["deep.ipynb"]),
    ("study {bad}/cell_kinds.yaml", ["cell_kinds.ipynb"]),
    # results of other machines
    ("import {bad}/nowhere", ["{bad}/nowhere"]),
    ("import {bad}/file", ["{bad}/file"]),
    ("import {bad}/cut.tar", ["cut.tar"]),
    ("import {bad}/empty", ["{bad}/empty"]),
    ("import {bad}/results_fifo", ["results_fifo"]),
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
        ("WORKBENCH_ROOT", "~nobody-here/x", ["WORKBENCH_ROOT", "~nobody-here/x"]),
        ("WORKBENCH_CHECKPOINT_SECONDS", "soon", ["WORKBENCH_CHECKPOINT_SECONDS", "soon"]),
        ("WORKBENCH_CHECKPOINT_SECONDS", "nan", ["WORKBENCH_CHECKPOINT_SECONDS", "nan"]),
        ("WORKBENCH_CHECKPOINT_SECONDS", "-1", ["WORKBENCH_CHECKPOINT_SECONDS", "-1"]),
        ("WORKBENCH_DIVERGED_GIB", "inf", ["WORKBENCH_DIVERGED_GIB", "inf"]),
        ("WORKBENCH_DIVERGED_GIB", "1e999", ["WORKBENCH_DIVERGED_GIB", "1e999"]),
        ("WORLD_SIZE", "two", ["WORLD_SIZE", "two"]),
        ("WORLD_SIZE", "0", ["WORLD_SIZE", "0"]),
        ("RANK", "3", ["RANK", "3", "WORLD_SIZE"]),
        ("LOCAL_RANK", "-1", ["LOCAL_RANK", "-1"]),
        ("WORKBENCH_CONTEXT", "{broken", ["WORKBENCH_CONTEXT", "{broken"]),
        ("WORKBENCH_CONTEXT", '{"colour": 3}', ["WORKBENCH_CONTEXT"]),
    ],
)
def test_a_bad_environment_variable_is_refused_with_its_value(refused, bad, monkeypatch, variable, value, names):
    monkeypatch.setenv(variable, value.replace("{bad}", str(bad)))
    started = time.monotonic()
    errors = refused("train", *SMALL)
    assert time.monotonic() - started < 20
    assert missing(errors, [name.replace("{bad}", str(bad)) for name in names]) == [], errors
    assert "secret" not in errors


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("WORKBENCH_GPUS", "\u00b2", "study large_batch --quick"),
        ("WORKBENCH_GPUS", "-1", "study large_batch --quick"),
        ("WORKBENCH_EXECUTOR", "processes:many", "study large_batch --quick"),
        ("WORKBENCH_EXECUTOR", "rayy", "study large_batch --quick"),
        ("WORKBENCH_EXECUTOR", "processes:2,gpus=nan", "study large_batch --quick"),
        ("WORKBENCH_CACHE", "{bad}/file", "models download nfnet_f0"),
        ("XDG_CACHE_HOME", "~nobody-here/x", "models download nfnet_f0"),
        ("WORKBENCH_DATA", "~nobody-here/x", "train -p data=cifar10 -p steps=1"),
    ],
)
def test_a_bad_variable_of_another_command_is_refused_with_its_value(refused, bad, monkeypatch, variable, value, line):
    value = value.replace("{bad}", str(bad))
    monkeypatch.setenv(variable, value)
    errors = refused(*shlex.split(line))
    assert variable in errors or value in errors


@pytest.mark.parametrize("name", ["empty", "text", "version", "kind", "nested", "line", "binary", "nowhere"])
def test_a_damaged_plan_is_refused_with_its_path(bad, root, monkeypatch, capsys, tmp_path, name):
    from workbench.training.__main__ import main

    file = bad / (name if name == "binary" else f"{name}.jsonl")
    monkeypatch.setattr(sys, "argv", ["workbench.training", str(file), "--out", str(tmp_path / "out")])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert main() == 2
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    errors = capsys.readouterr().err
    assert "Traceback" not in errors and str(file) in errors
    assert not (root / "mlruns" / "errors").exists()


@pytest.mark.parametrize("name", ["no_json", "other", "deep"])
def test_damaged_lines_of_results_are_named_and_not_imported(bad, root, command, name):
    code, out, errors = command("import", bad / f"results_{name}")
    assert code == 1 and "Traceback" not in out + errors
    assert missing(errors, ["results.jsonl", "1"]) == []
    assert recorded_runs(root) == [] and not (root / "mlruns" / "errors").exists()


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
