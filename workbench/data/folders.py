"""Folders of images as lists of files: classes, labels and splits, without reading an image.

A folder has one of two layouts:

    <split>/<class>/*.png   with the splits train, val and test. Without test, a fifth of train becomes the test split.
                            Without val, a tenth of the rest becomes the validation split.
    <class>/*.png           is split 70 / 10 / 20 by class
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.errors import WorkbenchError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "val", "test")
LIKE_SPLITS = {*SPLITS, "training", "valid", "validation", "testing"}
HASHED = 2**30  # bytes of images up to which the digest of a folder reads them


@dataclass(frozen=True)
class Files:
    """Paths of images and their labels (N,) int64."""

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, index: Tensor) -> "Files":
        """Return the files at `index`, a tensor of indices."""
        return Files(tuple(self.paths[i] for i in index.tolist()), self.labels[index])


@dataclass(frozen=True)
class ImageFolder:
    """A folder's classes, sorted by name, and its three splits."""

    path: Path
    classes: tuple[str, ...]
    train: Files
    val: Files
    test: Files

    channels = 3

    @property
    def name(self) -> str:
        """The path of the folder."""
        return str(self.path)

    @cached_property  # it reads the files, and a training needs it at the start and at the end
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of the files' names, sizes and bytes.

        Above 1 GiB it covers names and sizes only, because reading hundreds of gigabytes takes too long.
        """
        return self._hash(contents=True)

    @cached_property
    def listing(self) -> str:
        """SHA-256 (16 hex digits) of the files' names and sizes, which determine the splits. No file is read."""
        return self._hash(contents=False)

    def _hash(self, contents: bool) -> str:
        paths = [path for split in (self.train, self.val, self.test) for path in split.paths]
        sizes = [file_size(path) for path in paths]
        whole, hashed = contents and sum(sizes) <= HASHED, hashlib.sha256()
        for path, size in zip(paths, sizes, strict=True):
            hashed.update(os.fsencode(f"{Path(path).relative_to(self.path)} {size}\n"))
            if whole:
                add_contents(hashed, path)
        return hashed.hexdigest()[:16]

    def __str__(self) -> str:
        sizes = f"{len(self.train):,} train, {len(self.val):,} val, {len(self.test):,} test"
        return f"{self.name}: {sizes}, {len(self.classes)} classes"


def open_folder(folder: Path) -> ImageFolder:
    """List the images of a folder.

    Args:
        folder: A folder with one of the two layouts of this module.

    Returns:
        The classes and the three splits.

    Raises:
        WorkbenchError: For fewer than two classes, a missing train split, or a split without images.
    """
    present = [s for s in SPLITS if (folder / s).is_dir()]
    other = [d.name for d in sorted(folder.iterdir()) if d.is_dir() and d.name.lower() in LIKE_SPLITS]
    if other := sorted(set(other) - set(SPLITS)):
        raise WorkbenchError(
            f"The splits of {folder} must have the names train, val and test, got '{other[0]}'. Rename the folder."
        )
    if present and "train" not in present:
        raise WorkbenchError(
            f"{folder} must have a folder train, got {', '.join(present)}. Add it, or put the classes at the top level."
        )
    by_split = {s: image_files(folder / s) for s in present} or {"all": image_files(folder)}
    roots = {s: folder / s if present else folder for s in by_split}
    labelled = {s: [f for f in files if f.parent != roots[s]] for s, files in by_split.items()}
    names = {s: [f.relative_to(roots[s]).parts[0] for f in files] for s, files in labelled.items()}
    classes = tuple(sorted({name for each in names.values() for name in each}))
    if len(classes) < 2:
        raise WorkbenchError(
            f"{folder} must hold at least two folders of images, one per class, got {len(classes)}. "
            f"Example of an image: {folder}/cat/1.png."
        )
    index = {name: i for i, name in enumerate(classes)}
    splits = {}
    for s, files in labelled.items():
        if not files:
            raise WorkbenchError(
                f"{roots[s]} holds no images of the classes {', '.join(classes[:5])}. Add images or remove the folder."
            )
        splits[s] = Files(tuple(map(str, files)), torch.tensor([index[name] for name in names[s]]))
    untrained = sorted(set(classes) - set(names.get("train", classes)))
    if untrained:
        raise WorkbenchError(
            f"{folder / 'train'} has no images of the class '{untrained[0]}', but another split has. Add images to "
            "train, or remove the class."
        )
    if not present:
        train, val, test = _parted(splits["all"], (0.7, 0.1, 0.2))
    else:
        train, val, test = splits["train"], splits.get("val"), splits.get("test")
        if test is None:
            train, test = _parted(train, (0.8, 0.2))
        if val is None:
            train, val = _parted(train, (0.9, 0.1))
    for s, split in zip(SPLITS, (train, val, test), strict=True):
        if len(split) == 0:
            raise WorkbenchError(f"The {s} split of '{folder}' is empty. Add images to it.")
    return ImageFolder(folder, classes, train, val, test)


def image_files(folder: Path) -> list[Path]:
    """List all images under a folder, sorted.

    Links are followed, and those to files that are gone count as images that cannot be read. Hidden files and folders,
    and what is neither a file nor a link, are skipped.
    """
    images, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a parent folder
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        paths = (Path(place, name) for name in names if not name.startswith("."))
        images += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and _is_file_or_dead_link(path)]
    return sorted(images)


def _is_file_or_dead_link(path: Path) -> bool:
    return path.is_file() or not path.exists()


def file_size(path: str | Path) -> int:
    """Return the size of a file in bytes, 0 if it is gone."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def add_contents(hashed, path: str | Path) -> None:
    """Add the bytes of a file to a hash. A file that cannot be read adds none: decoding it reports it, or skips it."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        while block := file.read(2**20):
            hashed.update(block)


def stratified_parts(labels: Tensor, shares: tuple[float, ...], seed: int = 0) -> list[Tensor]:
    """Split rows at random into parts that have the same share of every class.

    Args:
        labels: (N,), int64.
        shares: The relative sizes of the parts.
        seed: Seed of the permutation of all rows.

    Returns:
        The row indices of each part, in the order of the permutation.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels.unique():
        members = order[labels[order] == label]
        cuts = np.round(np.cumsum(shares) / sum(shares) * len(members)).astype(int)
        for part, chunk in zip(parts, torch.tensor_split(members, torch.from_numpy(cuts[:-1])), strict=True):
            part.append(chunk)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return [chunk[rank[chunk].argsort()] for chunk in map(torch.cat, parts)]


def _parted(files: Files, shares: tuple[float, ...]) -> list[Files]:
    return [files.take(index) for index in stratified_parts(files.labels, shares)]
