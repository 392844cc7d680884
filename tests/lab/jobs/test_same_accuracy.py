"""`evaluate` repeats the test accuracy of a training from the file of its weights alone.

Evidence: equal accuracies and losses over all kinds of data, predictions compared one by one, and classes that moved.
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.odd_images import encoded, refused_images

from workbench.data import load_dataset
from workbench.data.labelled import open_labelled
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError
from workbench.lab.jobs.evaluate import evaluate
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, train
from workbench.weights.reading import read_weights

SETTINGS = {"model": "nf_resnet_tiny", "device": "cpu", "progress": False, "evaluate_test": True, "batch_size": 16}
CLASSES = ("cat", "dog", "emu")


def pictures(folder: Path, n: int = 12, size=(40, 52), gray: bool = False, classes=CLASSES, spread=70) -> Path:
    """Noise whose brightness depends on the class so weakly that a small network errs on some of it."""
    rng = np.random.default_rng(0)
    for i in range(n * len(classes)):
        level = 105 + 15 * (i % len(classes)) + np.linspace(-60, 60, size[1])[None, :, None]
        shape = (*size, 1 if gray else 3)
        pixels = (level + rng.normal(0, spread, shape)).clip(0, 255).astype(np.uint8)
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if gray else pixels).save(place / f"{i}.png")
    return folder


def trained(file: Path, **settings) -> float:
    """Train a few steps, save the weights, and return the accuracy on the test split."""
    result = train(TrainConfig(**SETTINGS | {"steps": 6, "base_lr": 2.0} | settings), save=file)
    assert result.outcome in FINISHED
    return result.metrics["test_acc"]


def score(file: Path, data, **settings):
    return evaluate("nf_resnet_tiny", file, data, device="cpu", progress=False, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 32},
        {"image_size": 24, "stream": True, "workers": 0},
        {"image_size": 24, "eval_size": 40, "stream": True, "workers": 0},
        {},
    ],
)
@pytest.mark.parametrize("gray", [False, True])
def test_a_folder_has_the_accuracy_of_its_training(root, tmp_path, settings, gray):
    """Pictures are 40x52, so a centre crop and a squashed image differ."""
    folder = pictures(tmp_path / "pictures", gray=gray)
    accuracy = trained(tmp_path / "w.safetensors", data=str(folder), **settings)
    scores = score(tmp_path / "w.safetensors", folder)
    assert (scores.split, scores.top1.mean, scores.top1.n, scores.trained_on) == ("test", accuracy, 6, False)
    scores = score(tmp_path / "w.safetensors", folder, split="all")
    assert (scores.split, scores.top1.n, scores.trained_on) == ("all", 36, True)


def test_folders_of_splits_have_the_accuracy_of_their_training(root, tmp_path):
    for split, n in (("train", 12), ("val", 3), ("test", 9)):
        pictures(tmp_path / "data" / split, n)
    accuracy = trained(tmp_path / "w.safetensors", data=str(tmp_path / "data"), image_size=32)
    for data in (tmp_path / "data", tmp_path / "data" / "test"):
        scores = score(tmp_path / "w.safetensors", data)
        assert (scores.top1.mean, scores.top1.n) == (accuracy, 27)
    assert score(tmp_path / "w.safetensors", tmp_path / "data", split="train").trained_on


@pytest.mark.parametrize("image_size", [32, None])
def test_each_test_image_has_the_pixels_of_the_training(tmp_path, image_size):
    folder = pictures(tmp_path / "pictures")
    trained(tmp_path / "w.safetensors", data=str(folder), image_size=image_size, steps=1)
    preprocess = Preprocess.from_dict(read_weights(tmp_path / "w.safetensors").preprocess, "w")
    data = load_dataset(str(folder), image_size)
    seen = torch.stack([preprocess.made(Image.open(path)) for path, _, _ in open_labelled(folder, "test")])
    assert torch.equal(seen, data.test.images) and seen.shape[2:] == ((32, 32) if image_size else (40, 52))
    by_hand = (seen.float() / 255 - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)
    assert torch.equal(preprocess.batch(seen), by_hand)
    assert preprocess.classes == CLASSES


def test_the_embedded_digits_have_the_accuracy_of_their_training(root, tmp_path):
    accuracy = trained(tmp_path / "w.safetensors", train_size=256)
    scores = score(tmp_path / "w.safetensors", "mnist5k")
    assert (scores.top1.mean, scores.top1.n, scores.split) == (accuracy, 1000, "test") and scores.top5 is not None
    digits = load_dataset("mnist5k").test
    for i in range(40):  # the same digits as a folder of gray images
        place = tmp_path / "digits" / str(digits.labels[i].item())
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[i, 0].numpy()).save(place / f"{i}.png")
    as_files, labels = open_labelled(tmp_path / "digits"), digits.labels[:40]
    preprocess = Preprocess.from_dict(read_weights(tmp_path / "w.safetensors").preprocess, "w")
    pixels = {Path(path).stem: preprocess.made(Image.open(path)) for path, _, _ in as_files}
    assert all(torch.equal(pixels[str(i)], digits.images[i]) for i in range(40)) and len(labels) == 40
    assert score(tmp_path / "w.safetensors", tmp_path / "digits").top1.n == 40


def write_parquet(file: Path, n: int, first: int = 0) -> None:
    rng = np.random.default_rng(first)
    rows = [
        encoded(Image.fromarray((rng.normal(100 + 20 * (i % 3), 60, (16, 20, 3))).clip(0, 255).astype(np.uint8)))
        for i in range(n)
    ]
    table = pa.table({"img": [{"bytes": row, "path": None} for row in rows], "label": [i % 3 for i in range(n)]})
    info = {"info": {"features": {"label": {"names": list(CLASSES)}}}}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), file)


def test_parquet_has_the_accuracy_of_its_training(root, tmp_path, monkeypatch):
    """Images of 16x20 pixels, by the name of the data set and by path."""
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("workbench.data.datasets.CIFAR_VAL", 9)
    monkeypatch.setattr("workbench.data.labelled.CIFAR_VAL", 9)
    write_parquet(tmp_path / "data" / "cifar10" / "train.parquet", 60)
    write_parquet(tmp_path / "data" / "cifar10" / "test.parquet", 30, first=7)
    accuracy = trained(tmp_path / "w.safetensors", data="cifar10")
    for data in ("cifar10", tmp_path / "data" / "cifar10", tmp_path / "data" / "cifar10" / "test.parquet"):
        scores = score(tmp_path / "w.safetensors", data)
        assert (scores.top1.mean, scores.top1.n) == (accuracy, 30)
    assert score(tmp_path / "w.safetensors", "cifar10", split="val").top1.n == 9
    with pytest.raises(WorkbenchError, match=r"'val'.*test"):
        score(tmp_path / "w.safetensors", tmp_path / "data" / "cifar10", split="val")
    with pytest.raises(WorkbenchError, match=r"'tets'.*'test'"):
        score(tmp_path / "w.safetensors", "cifar10", split="tets")


@pytest.mark.parametrize("settings", [{}, {"stream": True, "workers": 0}])
def test_skipped_images_are_skipped_in_the_evaluation_too(root, tmp_path, settings, capsys):
    folder = pictures(tmp_path / "pictures")
    (broken, *_), *_ = [path for path, _, _ in open_labelled(folder, "test")], None
    Path(broken).write_bytes(refused_images()["dds"])
    settings = {"data": str(folder), "image_size": 32, "unreadable": "skip", **settings}
    accuracy = trained(tmp_path / "w.safetensors", **settings)
    scores = score(tmp_path / "w.safetensors", folder, unreadable="skip")
    assert (scores.top1.mean, scores.top1.n) == (accuracy, 5)
    assert capsys.readouterr().err.count(broken) >= 2
    with pytest.raises(WorkbenchError, match=re.escape(broken)):
        score(tmp_path / "w.safetensors", folder)


# ---- classes


@pytest.fixture
def three_classes(root, tmp_path):
    """Weights of cat, dog and emu, and the folder of pictures that they know."""
    folder = pictures(tmp_path / "pictures")
    trained(tmp_path / "w.safetensors", data=str(folder), image_size=32)
    return tmp_path / "w.safetensors", folder


def test_classes_are_matched_by_name(three_classes, tmp_path):
    """The same pictures without the class dog, whose index the class emu then has."""
    file, folder = three_classes
    of = {name: score(file, folder_of(tmp_path, folder, [name])).top1.mean for name in CLASSES}
    both = score(file, folder_of(tmp_path, folder, ["cat", "emu"])).top1
    assert both.n == 24 and both.mean == pytest.approx((of["cat"] + of["emu"]) / 2)
    assert score(file, folder, split="all").top1.mean == pytest.approx(sum(of.values()) / 3)


def folder_of(tmp_path, folder, names):
    target = tmp_path / "-".join(names)
    for name in names:
        shutil.copytree(folder / name, target / name)
    return target


def test_classes_in_another_order_are_matched_by_name(three_classes, tmp_path):
    file, folder = three_classes
    wanted = score(file, folder, split="all")
    order = ["emu", "cat", "dog"]
    rows = [(path.read_bytes(), order.index(path.parent.name)) for path in sorted(folder.rglob("*.png"))]
    info = {"info": {"features": {"label": {"names": order}}}}
    table = pa.table({"image": [{"bytes": row} for row, _ in rows], "label": [label for _, label in rows]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "x.parquet")
    scores = score(file, tmp_path / "x.parquet")
    assert (scores.top1, scores.loss) == (wanted.top1, pytest.approx(wanted.loss))


def test_an_unknown_class_is_refused_with_the_nearest_name(three_classes, tmp_path, command):
    from workbench.lab import Store

    file, _ = three_classes
    other = pictures(tmp_path / "other", 2, classes=("cat", "emus", "fox"))
    code, _, errors = command("evaluate", "nf_resnet_tiny", "--weights", file, "--data", other, "--device", "cpu")
    assert code == 2 and "'emus'" in errors and "'emu'" in errors and "Traceback" not in errors
    assert Store().search("evaluations", "full") == []
    (tmp_path / "names.txt").write_text("cat\nemus\nfox\n")
    code, output, errors = command(
        "evaluate", "nf_resnet_tiny", "--weights", file, "--data", other, "--classes", tmp_path / "names.txt"
    )
    assert code == 0 and "top-1" in output, errors


def test_few_outputs_have_no_top5_and_trained_images_are_reported(three_classes, command):
    from workbench.lab import Store

    file, folder = three_classes
    code, output, errors = command("evaluate", "nf_resnet_tiny", "--weights", file, "--data", folder)
    assert code == 0 and "top-5" not in output and "of 6" in output and "--split" not in errors
    code, output, errors = command("evaluate", "nf_resnet_tiny", "--weights", file, "--data", folder, "--split", "all")
    assert code == 0 and "of 36" in output and "--split" in errors
    for run in Store().search("evaluations", "full"):
        assert "top5" not in run.metrics and run.parameters["split"] in ("test", "all")


# ---- what a file says


@pytest.mark.parametrize(
    "changes",
    [
        {"style": "krop"},
        {"style": ["fit"]},
        {"image_size": 10**9},
        {"image_size": "32"},
        {"image_size": [32]},
        {"image_size": True},
        {"mean": [0.5]},
        {"mean": [0.5, float("nan"), 0.5]},
        {"std": [0.5, 0.0, 0.5]},
        {"std": {"r": 1}},
        {"classes": ["cat", "cat"]},
        {"classes": "cat"},
        {"classes": [1, 2]},
        {"classes": None},
        {"trained_on": 5},
    ],
)
def test_a_file_that_describes_impossible_images_is_refused(changes):
    good = Preprocess("fit", 32, 24, classes=CLASSES, trained_on="a").to_dict()
    assert Preprocess.from_dict(json.loads(json.dumps(good)), "w").to_dict() == good
    with pytest.raises(WorkbenchError) as error:
        Preprocess.from_dict(good | changes, "w.safetensors")
    assert "w.safetensors" in str(error.value) and next(iter(changes)) in str(error.value)
    for values in (None, [], "x", 3, {}):
        with pytest.raises(WorkbenchError, match=r"w\.safetensors"):
            Preprocess.from_dict(values, "w.safetensors")


def test_files_of_earlier_versions_are_read():
    values = {"mean": [0.5], "std": [0.2], "image_size": 28, "style": "whole"}
    preprocess = Preprocess.from_dict(values, "w")
    assert (preprocess.channels, preprocess.width, preprocess.classes) == (1, 28, ())
