"""Labelled images one at a time, for evaluations: from a folder, from parquet, or from a named data set.

The class order is that of the parquet's labels, or the sorted order of the folders' names. ImageNet's synsets sort into
the order of the released weights.

The splits are those of a training on the same data:

| data | splits | default |
|---|---|---|
| `mnist5k`, `cifar10`, `cifar100` | train, val, test | test |
| a folder of train, val and test | train, val, test | test |
| a folder of class folders | all, train, val, test | all, or test if the weights were trained on it |
| parquet files named train..., test..., ... | all, and what the names say | test, or all without one |
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from workbench.data.datasets import CIFAR, CIFAR_VAL, EMBEDDED, cifar_tables, dataset_digest, load_dataset
from workbench.data.folders import SPLITS, ImageFolder, file_size, image_files, open_folder
from workbench.data.parquet import open_parquet
from workbench.errors import WorkbenchError, unknown
from workbench.files import local_path
from workbench.paths import data_folder

Source = str | Path | bytes | Image.Image
ALL = "all"
IN_HUB = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Labelled:
    """A source of labelled images. Iterate over it to read them as (image, label, name for error messages).

    Attributes:
        path: The folder, the parquet file, or the name of a data set.
        classes: Names of the classes, in the order of the labels.
        items: The images: a path, the bytes of a file, or a decoded image.
        n: The number of images.
        digest: Identifies the source, 16 hex digits.
        split: "all", "train", "val" or "test".
        listing: Identifies the splits of the whole source, see `ImageFolder.listing`. Empty: it has none.
    """

    path: Path
    classes: tuple[str, ...]
    items: Iterable[tuple[Source, int, str]] = field(repr=False)
    n: int
    digest: str
    split: str = ALL
    listing: str = ""

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[Source, int, str]]:
        return iter(self.items)


def open_labelled(data: str | Path, split: str | None = None, trained_on: str = "") -> Labelled:
    """Find labelled images. No image is read.

    Args:
        data: The name of a data set, a folder, a parquet file, or a folder of parquet files.
        split: "all", "train", "val" or "test". None: the default of the table at the top of this module.
        trained_on: The `listing` of the images that the weights were trained on.

    Returns:
        The images.

    Raises:
        WorkbenchError: If there are no images or no such split, or a parquet file has other columns or types.
    """
    if split is not None and split not in (ALL, *SPLITS):
        raise unknown("split", split, (ALL, *SPLITS))
    if str(data) == EMBEDDED:
        return _embedded(split or "test")
    if str(data) in CIFAR:
        return _cifar(str(data), split or "test")
    path = images_path(data)
    if path.is_file():
        return _parquet(path, (path,), split)
    tables = tuple(file for file in sorted(path.glob("*.parquet")) if file.is_file())
    if tables:
        return _parquet(path, tables, split)
    return _folder(path, split, trained_on)


def images_path(data: str | Path) -> Path:
    """Find the folder or parquet file of images. The name of a data set stays a name.

    Raises:
        WorkbenchError: If it does not exist, or is another kind of file.
    """
    name = str(data)
    if name == EMBEDDED or name in CIFAR:
        return Path(name)
    path = local_path(data).resolve()
    if not path.exists() and (data_folder() / name).is_dir():
        path = (data_folder() / name).resolve()
    if not path.is_dir() and not (path.is_file() and path.suffix == ".parquet"):
        raise WorkbenchError(
            f"`data` must be a folder of class folders, a parquet file, a folder of parquet files, or one of "
            f"{', '.join((EMBEDDED, *CIFAR))}, got {path}, which "
            f"{'is another kind of file' if path.exists() else 'does not exist'}."
        )
    return path


# ---- folders


def _folder(path: Path, split: str | None, trained_on: str) -> Labelled:
    """Open a folder of classes, or of splits with classes."""
    if any((path / each).is_dir() for each in SPLITS):
        if split == ALL:
            raise _no_split(path, ALL, SPLITS)
        return _part(open_folder(path), split or "test")
    if split in SPLITS:
        return _part(open_folder(path), split)
    whole = _whole(path)
    with contextlib.suppress(WorkbenchError):  # too few images for a training: other images
        if trained_on and (parts := open_folder(path)).listing == trained_on:
            return _part(parts, "test") if split is None else replace(whole, listing=trained_on)
    return whole


def _part(folder: ImageFolder, split: str) -> Labelled:
    files = getattr(folder, split)
    return _files(folder.path, folder.classes, files.paths, files.labels.tolist(), split, folder.listing)


def _whole(path: Path) -> Labelled:
    files = {d.name: image_files(d) for d in sorted(path.iterdir()) if d.is_dir() and not d.name.startswith(".")}
    classes = tuple(name for name, of_class in files.items() if of_class)
    if not classes:
        raise WorkbenchError(
            f"{path} holds no images in class folders and no parquet files. Example of an image: {path}/cat/1.jpg."
        )
    pairs = [(str(file), label) for label, name in enumerate(classes) for file in files[name]]
    paths, labels = zip(*pairs, strict=True)
    return _files(path, classes, paths, labels, ALL)


def _files(
    path: Path, classes: tuple[str, ...], paths: tuple[str, ...], labels: Sequence[int], split: str, listing: str = ""
) -> Labelled:
    items = tuple(zip(paths, labels, paths, strict=True))
    return Labelled(path, classes, items, len(items), _digest(path, paths), split, listing)


def _digest(folder: Path, files: Iterable[str | Path]) -> str:
    """Hash the names and sizes of files. No file is read."""
    hashed = hashlib.sha256()
    for file in files:
        hashed.update(os.fsencode(f"{Path(file).relative_to(folder)} {file_size(file)}\n"))
    return hashed.hexdigest()[:16]


# ---- parquet


def _parquet(path: Path, tables: tuple[Path, ...], split: str | None) -> Labelled:
    """Open files whose names begin with the name of a split, such as test-00000-of-00001.parquet, or any others."""
    parts: dict[str, list[Path]] = {ALL: list(tables)}
    for file in tables if path.is_dir() else ():
        word = re.split(r"[-_.]", file.name.lower())[0]
        if word in IN_HUB:
            parts.setdefault(IN_HUB[word], []).append(file)
    split = split or ("test" if "test" in parts else ALL)
    if split not in parts:
        raise _no_split(path, split, parts)
    rows = open_parquet(*parts[split])
    folder = path if path.is_dir() else path.parent
    return Labelled(path, rows.classes, rows, len(rows), _digest(folder, parts[split]), split)


# ---- named data sets


def _embedded(split: str) -> Labelled:
    if split == ALL:
        raise _no_split(EMBEDDED, ALL, SPLITS)
    data = load_dataset(EMBEDDED)
    images = getattr(data, split)
    items = tuple(
        (Image.fromarray(pixels[0].numpy()), label, f"image {i} of {EMBEDDED}")
        for i, (pixels, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True))
    )
    return Labelled(Path(EMBEDDED), data.classes, items, len(items), data.digest, split, EMBEDDED)


def _cifar(name: str, split: str) -> Labelled:
    if split == ALL:
        raise _no_split(name, ALL, SPLITS)
    train, test = cifar_tables(name)
    end = len(train) - CIFAR_VAL
    rows = {"train": train.take(0, end), "val": train.take(end, len(train)), "test": test}[split]
    return Labelled(Path(name), train.classes, rows, len(rows), dataset_digest(name), split, name)


def _no_split(data: str | Path, split: str, known: Iterable[str]) -> WorkbenchError:
    return WorkbenchError(f"{data} has no split '{split}'. Choose one of: {', '.join(known)}.")
