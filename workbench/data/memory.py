"""Images as uint8 in memory, read from folders and from parquet."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from workbench.bars import counted, write
from workbench.data.decode import decode, image_size
from workbench.data.folders import Files, ImageFolder
from workbench.data.parquet import ImageTable
from workbench.data.pixels import fit
from workbench.errors import WorkbenchError

MEMORY_SHARE = 0.5  # share of this machine's memory that a split may take
UNREADABLE_CURE = "Remove it, replace it, or set unreadable=skip"


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """Return the split on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, index) -> "Split":
        """Return the images and labels at `index`, a slice or a tensor of indices."""
        return Split(self.images[index], self.labels[index])


def read_folder(folder: ImageFolder, size: int | None, unreadable: str) -> tuple[Split, Split, Split]:
    """Read train, val and test.

    Args:
        folder: The files.
        size: Side of the images in pixels. None: all of them must have the same size.
        unreadable: "refuse" or "skip", see `datasets.load_dataset`.

    Raises:
        WorkbenchError: For images that cannot be read, have several sizes, or do not fit into memory.
    """
    splits = (folder.train, folder.val, folder.test)
    width, height = _common_size([p for s in splits for p in s.paths], unreadable) if size is None else (size, size)
    train, val, test = (_read_split(split, width, height, unreadable) for split in splits)
    return train, val, test


def _common_size(paths: list[str], unreadable: str) -> tuple[int, int]:
    """Return (width, height) of the images. More than one size is an error."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for path in paths:
        try:
            sizes.setdefault(image_size(path, UNREADABLE_CURE), []).append(path)
        except WorkbenchError:
            if unreadable == "refuse":
                raise
    if len(sizes) > 1 and unreadable == "skip":  # the size of an image that is skipped does not count
        sizes = {size: group for size, group in sizes.items() if any(map(_is_readable, group))}
    if len(sizes) > 1:
        raise WorkbenchError(
            f"All images must have the same size, got {len(sizes)} sizes from {min(sizes)} to {max(sizes)}. "
            "Set `image_size`, such as image_size=64."
        )
    return next(iter(sizes), (1, 1))


def _is_readable(path: str) -> bool:
    try:
        decode(path, path)
    except WorkbenchError:
        return False
    return True


def _read_split(files: Files, width: int, height: int, unreadable: str) -> Split:
    images, labels = _empty(len(files), height, width, "Set stream=true to read them during the training"), []
    paths = counted(files.paths, desc="reading images", unit="image", delay=2)
    items = zip(paths, files.labels.tolist(), files.paths, strict=True)
    for image, label, _ in _decoded(items, unreadable):
        images[len(labels)] = fit(image, height, width)
        labels.append(label)
    return Split(images[: len(labels)], torch.tensor(labels, dtype=torch.int64))


def read_table(table: ImageTable, name: str, unreadable: str) -> Split:
    """Read all rows of a parquet table. The images must have one size.

    Raises:
        WorkbenchError: For images that cannot be read, have several sizes, or do not fit into memory.
    """
    images, labels = torch.empty(0, 3, 1, 1, dtype=torch.uint8), []
    for image, label, where in _decoded(table, unreadable):
        if not labels:
            images = _empty(len(table), image.height, image.width, "Use a machine with more memory")
        height, width = images.shape[2:]
        if image.size != (width, height):
            raise WorkbenchError(
                f"All images of '{name}' must have the same size, got {image.width}x{image.height} in {where} and "
                f"{width}x{height} before it. Save them as a folder of images, and set `image_size`."
            )
        images[len(labels)] = fit(image, height, width)
        labels.append(label)
    return Split(images[: len(labels)], torch.tensor(labels, dtype=torch.int64))


def _decoded(items: Iterable[tuple[str | bytes, int, str]], unreadable: str) -> Iterator[tuple[Image.Image, int, str]]:
    """Yield (image, label, name for error messages) of what can be read."""
    for source, label, where in items:
        try:
            yield decode(source, where, UNREADABLE_CURE), label, where
        except WorkbenchError as error:
            if unreadable == "refuse":
                raise
            write(f"skipped: {str(error).removesuffix(f' {UNREADABLE_CURE}.')}")


def _empty(n: int, height: int, width: int, cure: str) -> Tensor:
    """Return an array for so many images, if the memory of this machine can hold it."""
    needed, memory = n * 3 * height * width, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > MEMORY_SHARE * memory:
        raise WorkbenchError(
            f"{n:,} images of {width}x{height} pixels need {needed / 2**30:.1f} GiB, more than half of this "
            f"machine's {memory / 2**30:.1f}. {cure}."
        )
    return torch.empty(n, 3, height, width, dtype=torch.uint8)
