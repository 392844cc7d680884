"""Images that Pillow refuses. Evidence: errors of many types, in memory, streamed, in parquet and in evaluations."""

import shutil

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.odd_images import cells, refused_images, table

from workbench.data import dataset_digest, load_dataset
from workbench.data.decode import decode, image_size
from workbench.data.labelled import open_labelled
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError
from workbench.outcomes import FINISHED
from workbench.training import TrainConfig, train
from workbench.training.evaluation import evaluate_images

REFUSED = refused_images()


@pytest.mark.parametrize("kind", REFUSED)
def test_the_error_is_one_sentence_with_the_path(tmp_path, kind):
    file = tmp_path / f"{kind}.png"
    file.write_bytes(REFUSED[kind])
    for source in (str(file), REFUSED[kind]):
        with pytest.raises(WorkbenchError) as error:
            decode(source, str(file))
        assert str(file) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_pillow_raises_errors_of_several_types():
    """Otherwise the test above would say little."""
    types = set()
    for content in REFUSED.values():
        with pytest.raises(WorkbenchError) as error:
            decode(content, "x")
        types.add(type(error.value.__cause__))
    assert len(types) >= 5


@pytest.mark.parametrize("error", [MemoryError, RecursionError, ZeroDivisionError, KeyError("mode"), SystemError("\n")])
def test_any_other_error_of_a_decoder_is_a_sentence_too(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")

    def broken(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
    with pytest.raises(WorkbenchError, match=r"x\.png"):
        decode(tmp_path / "x.png", "x.png")


def test_the_size_of_a_huge_image_is_refused_without_decoding(tmp_path):
    (tmp_path / "x.png").write_bytes(REFUSED["huge"])
    with pytest.raises(WorkbenchError, match=r"x\.png"):
        image_size(str(tmp_path / "x.png"))


@pytest.fixture
def with_refused(image_folder):
    """Folder of 40 sound images and one of each kind that Pillow refuses."""
    for kind, content in REFUSED.items():
        (image_folder / "dark" / f"{kind}.png").write_bytes(content)
    return image_folder


@pytest.mark.parametrize("size", [8, None])
def test_in_memory_they_are_refused_or_skipped(with_refused, capsys, size):
    with pytest.raises(WorkbenchError) as error:
        load_dataset(str(with_refused), size)
    assert any(f"{kind}.png" in str(error.value) for kind in REFUSED)
    data = load_dataset(str(with_refused), size, unreadable="skip")
    assert len(data.train) + len(data.val) + len(data.test) == 40
    shown = capsys.readouterr().err
    assert all(shown.count(f"{kind}.png") == 1 for kind in REFUSED)


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_they_are_refused_or_skipped(with_refused, workers):
    settings = {"data": str(with_refused), "stream": True, "image_size": 8, "batch_size": 31, "workers": workers}
    config = TrainConfig(steps=2, device="cpu", progress=False, evaluate_test=True, **settings)
    with pytest.raises(WorkbenchError) as error:
        train(config)
    assert any(f"{kind}.png" in str(error.value) for kind in REFUSED)
    result = train(config.replace(unreadable="skip"))
    assert result.outcome in FINISHED and result.metrics["images_skipped"] == len(REFUSED)


def test_in_an_evaluation_they_are_refused_or_skipped(with_refused, capsys):
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    data, settings = open_labelled(with_refused), {"indices": (0, 1), "device": torch.device("cpu"), "progress": False}
    with pytest.raises(WorkbenchError, match=r"dark/.*\.png"):
        evaluate_images(model, data, Preprocess("fit", 8, 8), **settings)
    assert evaluate_images(model, data, Preprocess("fit", 8, 8), unreadable="skip", **settings).n == 40
    assert all(f"{kind}.png" in capsys.readouterr().err for kind in list(REFUSED)[:1])
    shutil.rmtree(with_refused / "bright")
    for file in (with_refused / "dark").glob("[0-9]*.png"):
        file.unlink()
    with pytest.raises(WorkbenchError, match=rf"{len(REFUSED)} images"):
        evaluate_images(model, open_labelled(with_refused), Preprocess("fit", 8, 8), unreadable="skip", **settings)


def test_in_parquet_they_are_refused_or_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    monkeypatch.setattr("workbench.data.datasets.CIFAR_VAL", 2)
    rows = cells(12)
    rows[3] = {"bytes": REFUSED["text_bomb"], "path": None}
    rows[5] = {"bytes": None, "path": None}
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        pq.write_table(table(12, image=rows), tmp_path / "cifar10" / f"{part}.parquet")
    with pytest.raises(WorkbenchError, match=r"row 3 of .*train\.parquet"):
        load_dataset("cifar10")
    data = load_dataset("cifar10", unreadable="skip")
    assert [len(split) for split in (data.train, data.val, data.test)] == [8, 2, 10]
    assert "row 5" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_has_a_digest(image_folder, monkeypatch):
    """Decoding then reports it, or skips it."""
    locked = image_folder / "dark" / "3.png"
    before, real = dataset_digest(str(image_folder)), open

    def guarded(file, *arguments, **options):
        if str(file) == str(locked):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", guarded)
    assert dataset_digest(str(image_folder)) != before
    with pytest.raises(WorkbenchError, match=r"3\.png"):
        load_dataset(str(image_folder), 8)
    assert len(load_dataset(str(image_folder), 8, unreadable="skip").train) > 0
