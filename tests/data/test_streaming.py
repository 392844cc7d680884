"""Tests of streamed images.

Evidence: pixels derived step by step, and equal bits for any number of workers and after an interruption. Files that
cannot be read are refused or skipped.
"""

import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from workbench.data import image_folder as open_image_folder
from workbench.data import streaming
from workbench.data.augment import generator_for, seed_for
from workbench.data.mixing import cutmix_boxes
from workbench.data.pixels import Preprocess
from workbench.data.preprocess import train_pixels
from workbench.data.randaugment import rand_augment
from workbench.data.streaming import EvalImages, Request, TrainImages, chunks, normalized
from workbench.errors import WorkbenchError
from workbench.training import TrainConfig, train
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World
from workbench.training.inputs import source, source_digest
from workbench.training.streamed import StreamedInputs

CPU = torch.device("cpu")


@pytest.fixture
def stripes(tmp_path):
    """Make 30 images of horizontal and 30 of vertical stripes, of sizes from 20 to 49 pixels."""
    rng = np.random.default_rng(0)
    for label in ("flat", "upright"):
        (tmp_path / "stripes" / label).mkdir(parents=True)
        for i in range(30):
            height, width = rng.integers(20, 50, 2)
            wave = 100 * np.sin(np.arange(height)[:, None] * 1.2 + rng.uniform(0, 6)) * np.ones((height, width))
            if label == "upright":
                wave = 100 * np.sin(np.arange(width) * 1.2 + rng.uniform(0, 6)) * np.ones((height, width))
            pixels = (128 + wave[..., None] + rng.normal(0, 10, (height, width, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "stripes" / label / f"{i}.png")
    return tmp_path / "stripes"


def config(folder, **changes):
    values = {
        "model": "nf_resnet_tiny",
        "model_args": {"skip_gain": 1.0, "dropout": 0.1},
        "data": str(folder),
        "stream": True,
        "image_size": 24,
        "batch_size": 40,
        "steps": 3,
        "device": "cpu",
        "progress": False,
        "workers": 0,
    }
    return TrainConfig(**values | changes)


def all_batches(inputs, steps, done=0):
    return [part.made() for parts in inputs.steps(steps, done) for part in parts]


def plain(result):
    drop = ("seconds", "device_seconds", "images_per_second")
    rows = [{k: v for k, v in row.items() if k not in drop} for row in result.history]
    return rows, {k: v for k, v in result.metrics.items() if k not in drop}, result.outcome


# ---- one image


def test_an_image_without_mixing_is_the_authors_train_crop(stripes):
    files = open_image_folder(str(stripes)).train
    made = TrainImages(files, 24, seed=7)[Request(5, 2, 8, image=3, partner=4)]
    with Image.open(files.paths[3]) as image:
        wanted = train_pixels(image, 24, generator_for(7, "crop", 5, 2)).transpose(2, 0, 1)
    assert np.allclose(made.pixels, wanted, atol=1e-3)
    by_hand = (wanted / 255 - [[[0.485]], [[0.456]], [[0.406]]]) / [[[0.229]], [[0.224]], [[0.225]]]  # ImageNet's
    assert np.allclose(normalized(made.pixels[None])[0], by_hand, atol=1e-5)
    assert (made.label, made.share, made.unreadable) == (int(files.labels[3]), 1.0, ())


@pytest.mark.parametrize("position", [1, 6])
@pytest.mark.parametrize("level", [None, 5.0])
def test_an_image_is_cropped_then_mixed_then_augmented(stripes, position, level):
    """The first half of a batch gets MixUp, the second CutMix. RandAugment changes the result, clamped to 0 to 255."""
    files = open_image_folder(str(stripes)).train
    made = TrainImages(files, 24, seed=7, mix=True, level=level)[Request(5, position, 8, image=3, partner=40)]
    crops = []
    for index, what in ((3, "crop"), (40, "partner's crop")):
        with Image.open(files.paths[index]) as image:
            crops.append(train_pixels(image, 24, generator_for(7, what, 5, position)).astype(np.float64))
    rng = np.random.default_rng(seed_for(7, "image", 5, position))
    if position == 1:
        share = rng.beta(0.2, 0.2)
        wanted = share * crops[0] + (1 - share) * crops[1]
    else:
        top, bottom, left, right = cutmix_boxes(1, 24, 24, rng)[0]
        wanted, share = crops[1].copy(), (bottom - top) * (right - left) / 576
        wanted[top:bottom, left:right] = crops[0][top:bottom, left:right]
    if level is not None:
        wanted = np.asarray(rand_augment(Image.fromarray(wanted.clip(0, 255).astype(np.uint8)), level, rng, 4))
        assert made.pixels.dtype == torch.uint8
    assert np.abs(made.pixels.numpy().transpose(1, 2, 0) - wanted).max() <= (1e-3 if level is None else 1)
    assert made.share == pytest.approx(share)
    assert (made.label, made.partner_label) == (int(files.labels[3]), int(files.labels[40]))


def test_mixed_labels_are_weighted_by_the_share(stripes):
    inputs = StreamedInputs(config(stripes, mix=True), open_image_folder(str(stripes)), World(), CPU)
    ((_, y),) = all_batches(inputs, 1)
    images, requests = TrainImages(inputs.train, 24, 0, mix=True), next(iter(inputs._requests(1, 0)))
    for mixed, made in zip(y, (images[request] for request in requests), strict=False):
        label, other = one_hot(torch.tensor([made.label, made.partner_label]), 2).float()
        assert torch.allclose(mixed, made.share * label + (1 - made.share) * other, atol=1e-6)


def test_validation_images_are_cut_in_the_models_style(stripes):
    data = open_image_folder(str(stripes))
    images = torch.cat([x for x, _ in StreamedInputs(config(stripes, eval_size=40), data, World(), CPU).val()])
    wanted = [Preprocess("whole", 40, 40).made(Image.open(path)) for path in data.val.paths]
    assert torch.equal(images, torch.stack(wanted))
    labels = torch.cat([y for _, y in StreamedInputs(config(stripes), data, World(), CPU).val()])
    assert torch.equal(labels, data.val.labels)


# ---- whole batches


def test_every_image_occurs_once_per_epoch_across_steps(stripes):
    inputs = StreamedInputs(config(stripes, batch_size=24), open_image_folder(str(stripes)), World(), CPU)
    assert len(inputs.train) == 42
    indices = [request.image for chunk in inputs._requests(7, 0) for request in chunk]
    assert len(indices) == 7 * 24 == 4 * 42
    for epoch in range(4):
        assert sorted(indices[epoch * 42 : (epoch + 1) * 42]) == list(range(42))


@pytest.mark.parametrize("changes", [{}, {"mix": True, "rand_augment": 10.0, "cutout": 4, "micro_batch": 15}])
def test_workers_and_a_resumption_change_no_bit(stripes, changes):
    settings = config(stripes, **changes)
    data = open_image_folder(str(stripes))
    wanted = all_batches(StreamedInputs(settings, data, World(), CPU), 3)
    assert len(wanted) == 3 * (3 if changes else 1)
    for workers in (1, 2):
        batches = all_batches(StreamedInputs(settings.replace(workers=workers), data, World(), CPU), 3, done=1)
        for (x, y), (a, b) in zip(wanted[len(wanted) // 3 :], batches, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)


def test_two_processes_share_the_batch_of_one_process(stripes):
    settings, data = config(stripes, batch_size=37, mix=True), open_image_folder(str(stripes))
    x, y = all_batches(StreamedInputs(settings, data, World(), CPU), 1)[0]
    halves = [all_batches(StreamedInputs(settings, data, World(rank, 2, rank), CPU), 1)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([a for a, _ in halves]), x) and torch.equal(torch.cat([b for _, b in halves]), y)
    assert [len(a) for a, _ in halves] == [19, 18]


def test_gradient_accumulation_sees_the_same_images(stripes):
    """Random draws depend on the position in the batch. For images in memory they depend on the micro-batch."""
    settings, data = config(stripes, mix=True), open_image_folder(str(stripes))
    whole = all_batches(StreamedInputs(settings, data, World(), CPU), 1)
    parts = all_batches(StreamedInputs(settings.replace(micro_batch=7), data, World(), CPU), 1)
    assert [len(x) for x, _ in parts] == [7, 7, 7, 7, 7, 5]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0][0])


# ---- a training


def test_a_streamed_training_learns_and_saves_its_preprocessing(stripes, tmp_path):
    from workbench.weights.reading import read_weights

    settings = config(stripes, steps=40, base_lr=0.8, eval_size=32, workers=1)
    result = train(settings, save=tmp_path / "x.safetensors")
    assert result.outcome == "complete" and result.metrics["val_acc"] == 1.0
    assert result.metrics["train_loss"] < 0.3
    preprocess = read_weights(tmp_path / "x.safetensors").preprocess
    assert (preprocess["style"], preprocess["image_size"]) == ("whole", 32)
    assert preprocess["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_an_interrupted_training_ends_in_the_same_rows_with_more_workers(stripes, tmp_path):
    (stripes / "flat" / "3.png").write_bytes(b"no picture")
    settings = config(stripes, steps=6, eval_every=2, mix=True, rand_augment=5.0, unreadable="skip", sam_rho=0.05)
    wanted = train(settings)
    checkpoints = Checkpoints(tmp_path / "c", every_steps=1)

    def break_off(row):
        if row["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, break_off, checkpoints=checkpoints)
    assert plain(train(settings.replace(workers=2), checkpoints=checkpoints)) == plain(wanted)
    assert wanted.metrics["images_skipped"] == 1


# ---- files that cannot be read


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_error_for_an_unreadable_image_names_its_path(stripes, workers, split):
    broken = getattr(open_image_folder(str(stripes)), split).paths[1]
    with open(broken, "r+b") as file:
        file.truncate(60)
    with pytest.raises(WorkbenchError, match=f"{broken} as an image .*unreadable=skip"):
        train(config(stripes, workers=workers, steps=2))


def test_an_unreadable_image_is_replaced_by_the_next_and_reported_once(stripes, capsys):
    data = open_image_folder(str(stripes))
    in_train, in_val = data.train.paths[1], data.val.paths[0]
    for path in (in_train, in_val):
        with open(path, "wb") as file:
            file.write(b"no picture")
    result = train(config(stripes, unreadable="skip", workers=2, steps=4))
    assert result.outcome == "complete" and result.metrics["images_skipped"] == 2
    errors = capsys.readouterr().err
    assert errors.count(in_train) == errors.count(in_val) == 1
    made = TrainImages(data.train, 24, 0)[Request(1, 0, 1, 1, 1)]
    following = TrainImages(data.train, 24, 0)[Request(1, 0, 1, 2, 2)]
    assert torch.equal(made.pixels, following.pixels) and made.unreadable[0][0] == in_train
    inputs = StreamedInputs(config(stripes, unreadable="skip"), data, World(), CPU)
    assert sum(len(y) for _, y in inputs.val()) == len(data.val) - 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_training_whose_images_are_all_unreadable_ends(stripes, workers):
    for path in stripes.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(WorkbenchError, match=rf"^100 images.*{stripes}"):
        train(config(stripes, unreadable="skip", workers=workers))


def test_skipping_continues_where_refusing_stopped(stripes, tmp_path):
    """The steps before the broken file are not lost."""
    settings = config(stripes, steps=6, eval_every=1, batch_size=10)
    order = next(iter(StreamedInputs(settings, open_image_folder(str(stripes)), World(), CPU)._requests(6, 4)))
    broken = open_image_folder(str(stripes)).train.paths[order[0].image]  # needed in step 5
    with open(broken, "r+b") as file:
        file.write(b"no picture")
    rows, checkpoints = [], Checkpoints(tmp_path / "c", every_steps=1)
    with pytest.raises(WorkbenchError, match=rf"{broken} .*unreadable=skip"):
        train(settings, rows.append, checkpoints=checkpoints)
    reached = len(rows)
    assert 0 < reached < 6
    again = []
    result = train(settings.replace(unreadable="skip"), again.append, checkpoints=checkpoints)
    assert result.outcome == "complete" and plain_rows(again[:reached]) == plain_rows(rows)
    assert again[reached - 1]["seconds"] == rows[-1]["seconds"]  # from the checkpoint, not computed again


def plain_rows(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_killed_worker_ends_in_an_error_soon(stripes):
    files = open_image_folder(str(stripes)).train
    made = chunks(Deadly(files, 24, 0), [[Request(1, i, 8, i, i)] for i in range(8)], workers=1)
    started = time.monotonic()
    with pytest.raises(WorkbenchError, match=r"process that reads images.*`workers`"):
        list(made)
    assert time.monotonic() - started < 60


class Deadly(TrainImages):
    def __getitem__(self, request):
        if request.position == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(request)


def test_a_named_pipe_among_the_images_is_skipped(stripes):
    before = len(open_image_folder(str(stripes)).train)
    os.mkfifo(stripes / "flat" / "pipe.png")
    assert len(open_image_folder(str(stripes)).train) == before


# ---- which images


def test_the_digest_of_a_folder_depends_on_its_files_alone(stripes, tmp_path):
    before = source_digest(config(stripes))
    shutil.copytree(stripes, tmp_path / "copy")
    assert source_digest(config(tmp_path / "copy")) == before
    shutil.copy(tmp_path / "copy" / "flat" / "1.png", tmp_path / "copy" / "flat" / "new.png")
    assert source_digest(config(tmp_path / "copy")) != before


def test_other_images_of_the_same_size_change_the_training_key_and_another_path_does_not(
    stripes, tmp_path, monkeypatch
):
    from workbench.data import folders
    from workbench.training import training_key

    shutil.copytree(stripes, tmp_path / "copy")
    a, b = config(stripes), config(tmp_path / "copy")
    assert training_key(a, source_digest(a)) == training_key(b, source_digest(b))
    file = tmp_path / "copy" / "flat" / "1.png"
    file.write_bytes(bytes(reversed(file.read_bytes())))
    assert training_key(a, source_digest(a)) != training_key(b, source_digest(b))
    monkeypatch.setattr(folders, "HASHED", 10)  # as if the files were too large to read
    assert source_digest(a) == source_digest(b)


def images_in(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / folder / "1.png")


def test_links_are_followed_and_hidden_folders_are_no_classes(tmp_path):
    images_in(tmp_path, "data/cat", "data/dog", "elsewhere/fox", "data/.ipynb_checkpoints", "data/cat/.thumbs")
    (tmp_path / "data" / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    for i in range(2, 12):
        for name in ("cat", "dog", "fox"):
            shutil.copy(tmp_path / "data" / name / "1.png", tmp_path / "data" / name / f"{i}.png")
    data = open_image_folder(str(tmp_path / "data"))
    assert data.classes == ("cat", "dog", "fox")
    assert len(data.train) + len(data.val) + len(data.test) == 33


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["Train/a", "Train/b", "Val/a"], "train, val and test.*'Train'"),
        (["train/a", "train/b", "validation/a"], "train, val and test.*'validation'"),
        (["train/a", "train/b", "val/a", "val/c"], "/train .*'c'"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path, folders, words):
    images_in(tmp_path, *folders)
    with pytest.raises(WorkbenchError, match=words):
        open_image_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "cifar10"}, ["cifar10"]),
        ({"data": "imagenett"}, ["imagenett"]),
        ({"stream": False, "workers": 2, "data": "mnist5k", "image_size": None}, ["`workers`", "2", "`stream`"]),
        ({"stream": False, "rand_augment": 5.0, "workers": None}, ["`rand_augment`", "5.0", "`stream`"]),
        ({"shift": 4}, ["`shift`", "4"]),
        ({"rand_augment": 31.0}, ["rand_augment", "31", "30"]),
        ({"workers": -1}, ["workers", "-1", "0"]),
        ({"unreadable": "skipp"}, ["skipp", "'skip'"]),
        ({"precision": "bfloat"}, ["bfloat", "'bfloat16'"]),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(stripes, changes, named):
    """The error names the field, the value, and the bound or the nearest known value."""
    with pytest.raises(WorkbenchError) as caught:
        source(config(stripes, **changes))
    assert all(word in str(caught.value) for word in named), str(caught.value)


def test_the_error_for_too_many_images_in_memory_names_stream(stripes, monkeypatch):
    from workbench.data import load_dataset

    monkeypatch.setattr("workbench.data.memory.MEMORY_SHARE", 1e-9)
    with pytest.raises(WorkbenchError, match=r"24x24.*stream=true"):
        load_dataset(str(stripes), 24)


def test_skipped_images_in_memory_are_reported_by_name(stripes, capsys):
    from workbench.data import load_dataset

    (stripes / "flat" / "3.png").write_bytes(b"no picture")
    data = load_dataset(str(stripes), 24, unreadable="skip")
    assert len(data.train) + len(data.val) + len(data.test) == 59
    assert str(stripes / "flat" / "3.png") in capsys.readouterr().err


def test_chunks_keep_their_order(stripes):
    files = open_image_folder(str(stripes)).train
    labels = [
        chunk.labels
        for chunk in chunks(EvalImages(files, Preprocess("whole", 16, 16)), [[i, i + 1] for i in range(20)], 2)
    ]
    assert torch.equal(torch.stack(labels), torch.stack([files.labels[i : i + 2] for i in range(20)]))


@pytest.mark.parametrize("mix", [False, True])
def test_with_little_shared_memory_the_same_images_come_through_a_pipe(stripes, monkeypatch, mix):
    images = TrainImages(open_image_folder(str(stripes)).train, 24, 0, mix=mix)
    wanted = [[Request(step, i, 8, i, i + 1) for i in range(8)] for step in range(3)]
    alone = list(chunks(images, wanted, workers=0))
    for free, shared in ((10**12, True), (64 * 2**20, False)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        monkeypatch.setattr(streaming, "AHEAD", 10**5)
        made = list(chunks(images, wanted, workers=2))
        assert all(chunk.pixels.is_shared() is shared for chunk in made)
        assert all(
            torch.equal(a.pixels, b.pixels) and torch.equal(a.shares, b.shares)
            for a, b in zip(alone, made, strict=True)
        )
