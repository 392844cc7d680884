"""Images that memory cannot hold: worker processes read them from disk ahead of their step.

One worker makes the whole image. As in the authors' code it crops and mirrors, mixes with the partner, then applies
RandAugment. The image is a function of (seed, step, position in the batch). So neither the number of workers
nor a resumption changes a pixel.
"""

import shutil
import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from workbench.data.augment import generator_for, seed_for
from workbench.data.decode import decode
from workbench.data.folders import Files
from workbench.data.mixing import MIXUP_ALPHA, cutmix_boxes
from workbench.data.pixels import Preprocess
from workbench.data.preprocess import MEAN_RGB, STD_RGB, train_pixels
from workbench.data.randaugment import LAYERS, rand_augment
from workbench.errors import WorkbenchError

CHUNK = 32  # images that a worker makes at a time
AHEAD = 1024  # at least so many images are made ahead of their step
SHARED_MEMORY = Path("/dev/shm")  # where the system keeps memory that processes share; in a container often 64 MB
TIMEOUT = 600  # seconds without an image, after which a file system that does not answer is an error


class Request(NamedTuple):
    """A request for one training image.

    Attributes:
        step: The step of the training.
        position: The position in the batch.
        batch_size: The size of the whole batch.
        image: The index of the image's file.
        partner: The index of the file to mix with.
    """

    step: int
    position: int
    batch_size: int
    image: int
    partner: int


class Made(NamedTuple):
    """A finished image.

    Attributes:
        pixels: (3, H, W), uint8 or float32. Training images are in units of 0 to 255.
        label: The label of the image.
        partner_label: The label of the image that was mixed in.
        share: The weight of `label`, from 0 to 1.
        unreadable: Files that could not be read, as (path, reason).
    """

    pixels: Tensor
    label: int
    partner_label: int
    share: float
    unreadable: tuple[tuple[str, str], ...]


class Chunk(NamedTuple):
    """Several finished images.

    Attributes:
        pixels: (N, 3, H, W), uint8 or float32.
        labels: (N,), labels of the images.
        partner_labels: (N,), labels of the images that were mixed in.
        shares: (N,), weights of `labels`, from 0 to 1.
        unreadable: Files that could not be read, as (path, reason).
    """

    pixels: Tensor
    labels: Tensor
    partner_labels: Tensor
    shares: Tensor
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TrainImages(Dataset):
    """A data set of training images. Index it with a `Request`.

    Attributes:
        files: Paths and labels of the images.
        size: Side of an image in pixels.
        seed: The seed of the training.
        flip: Whether images are mirrored at random.
        mix: Whether to mix: MixUp in the first half of a batch, CutMix in the second.
        alpha: Parameter of MixUp's Beta distribution.
        level: Level of RandAugment. None turns it off.
        layers: Layers of RandAugment.
    """

    files: Files
    size: int
    seed: int
    flip: bool = True
    mix: bool = False
    alpha: float = MIXUP_ALPHA
    level: float | None = None
    layers: int = LAYERS

    @property
    def values(self) -> int:
        """The number of values of an image."""
        return 3 * self.size**2

    def __getitem__(self, request: Request) -> Made:
        step, position = request.step, request.position
        broken: list[tuple[str, str]] = []
        pixels, label = self._cropped(request.image, generator_for(self.seed, "crop", step, position), broken)
        partner_label, share = label, 1.0
        rng = np.random.default_rng(seed_for(self.seed, "image", step, position))
        if self.mix:
            generator = generator_for(self.seed, "partner's crop", step, position)
            other, partner_label = self._cropped(request.partner, generator, broken)
            if position < (request.batch_size + 1) // 2:
                share = rng.beta(self.alpha, self.alpha)
                pixels = (share * pixels + (1 - share) * other).astype(np.float32)
            else:
                ((top, bottom, left, right),) = cutmix_boxes(1, self.size, self.size, rng)
                other, other[top:bottom, left:right] = other.copy(), pixels[top:bottom, left:right]
                pixels, share = other, (bottom - top) * (right - left) / self.size**2
        if self.level is not None:
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            pixels = np.asarray(rand_augment(image, self.level, rng, self.layers))
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return Made(tensor, label, partner_label, share, tuple(broken))

    def _cropped(self, index: int, generator: torch.Generator, broken: list) -> tuple[np.ndarray, int]:
        image, index = first_readable(self.files, index, broken)
        return train_pixels(image, self.size, generator, self.flip), int(self.files.labels[index])


@dataclass(frozen=True)
class EvalImages(Dataset):
    """A data set of test images. Unreadable images have label -1.

    Attributes:
        files: Paths and labels of the images.
        preprocess: How the images are made.
    """

    files: Files
    preprocess: Preprocess

    @property
    def values(self) -> int:
        """The number of values of an image."""
        return 3 * self.preprocess.height * self.preprocess.width

    def __getitem__(self, index: int) -> Made:
        path, label = self.files.paths[index], int(self.files.labels[index])
        try:
            return Made(self.preprocess.made(decode(path, path)), label, label, 1.0, ())
        except WorkbenchError as error:
            blank = torch.zeros(3, self.preprocess.height, self.preprocess.width)
            return Made(blank, -1, -1, 1.0, ((path, str(error)),))


def first_readable(files: Files, index: int, broken: list[tuple[str, str]]) -> tuple[Image.Image, int]:
    """Read the image at `index`, or the first readable image after it.

    Args:
        files: Paths and labels of the images.
        index: Where to start.
        broken: Gets (path, reason) of each image that cannot be read.

    Returns:
        The image and its index.

    Raises:
        WorkbenchError: If none of a hundred images can be read.
    """
    for at in range(index, index + 100):
        path = files.paths[at % len(files)]
        try:
            return decode(path, path), at % len(files)
        except WorkbenchError as error:
            broken.append((path, str(error)))
    raise WorkbenchError(f"100 images in a row cannot be read, the last is {path}. Check that the disk is connected.")


def chunks(
    dataset: TrainImages | EvalImages, indices: Iterable[list], workers: int, pin: bool = False
) -> Iterator[Chunk]:
    """Make the images of each list of `indices`, in order.

    Worker processes hand their images over in shared memory, or through a pipe if there is too little of it.

    Args:
        dataset: The images.
        indices: One list per chunk.
        workers: The number of processes that work ahead. 0 makes the images in this process.
        pin: Whether the tensors are in pinned memory.

    Yields:
        One chunk per list.

    Raises:
        WorkbenchError: If a worker dies or no longer answers.
    """
    ahead = {"prefetch_factor": max(2, -(-AHEAD // (CHUNK * workers))), "timeout": TIMEOUT} if workers else {}
    small = workers > 0 and not _fits_into_shared_memory(dataset.values, workers)
    options = {"collate_fn": _joined_arrays if small else _joined, "pin_memory": pin, "worker_init_fn": _quiet, **ahead}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # the user may want more workers than cores
        loader = DataLoader(dataset, batch_sampler=indices, num_workers=workers, **options)
    try:
        yield from map(_as_tensors, loader) if small else loader
    except WorkbenchError as error:  # a worker adds its traceback to the message
        raise WorkbenchError(str(error).rpartition("WorkbenchError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise WorkbenchError(
            f"A process that reads images stopped ({error}). If memory is short, set a smaller `workers`."
        ) from error


def _fits_into_shared_memory(values: int, workers: int) -> bool:
    """Return whether the images that workers make ahead take at most half of the free shared memory."""
    if not SHARED_MEMORY.is_dir():
        return True
    images = max(AHEAD, 2 * CHUNK * workers) + CHUNK * workers
    return 2 * images * values * 4 <= shutil.disk_usage(SHARED_MEMORY).free  # at most 4 bytes each


def normalized(pixels: Tensor) -> Tensor:
    """Turn (N, 3, H, W) from 0 to 255 into float32, normalised by ImageNet's moments."""
    mean, std = (torch.from_numpy(v).to(pixels.device).view(-1, 1, 1) for v in (MEAN_RGB, STD_RGB))
    return (pixels.float() - mean) / std


def _joined(made: list[Made]) -> Chunk:
    pixels, labels, partners, shares, unreadable = zip(*made, strict=True)
    return Chunk(
        torch.stack(pixels),
        torch.tensor(labels),
        torch.tensor(partners),
        torch.tensor(shares, dtype=torch.float32),
        tuple(file for files in unreadable for file in files),
    )


def _joined_arrays(made: list[Made]) -> Chunk:
    """Join images into arrays. They go through a pipe, where tensors would go through shared memory."""
    return Chunk(*(part.numpy() if isinstance(part, Tensor) else part for part in _joined(made)))


def _as_tensors(chunk: Chunk) -> Chunk:
    return Chunk(*(torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in chunk))


def _quiet(_: int) -> None:
    """Let a worker leave Ctrl-C to its parent, end on SIGTERM, and hide PIL's warnings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.filterwarnings("ignore", module="PIL")
