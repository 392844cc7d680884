"""Images that memory cannot hold: read from disk by worker processes, ahead of the step that needs them.

Each image is made whole by one worker, a function of (seed, step, position in the batch): crop and mirror, mix with its
partner, then RandAugment, in the authors' order. So neither the number of workers nor a resumption changes a pixel.
"""

import signal
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from workbench.data.preprocess import MEAN_RGB, STD_RGB, eval_image, train_pixels
from workbench.data.randaugment import LAYERS, rand_augment
from workbench.errors import WorkbenchError

CHUNK = 32  # images that a worker makes at a time
AHEAD = 1024  # images that are made ahead of their step, at least
TIMEOUT = 600  # seconds without an image: a file system that does not answer is an error, not a hang


class Request(NamedTuple):
    """One training image to make: where in the training it stands, and which files it is made of."""

    step: int
    position: int  # in the batch
    batch_size: int
    image: int
    partner: int


class Made(NamedTuple):
    """An image (3, H, W), uint8 or float32 in units of 0..255; its label and its partner's, and the share of its own;
    what could not be read on the way, as (path, reason)."""

    pixels: Tensor
    label: int
    partner_label: int
    share: float
    unreadable: tuple[tuple[str, str], ...]


class Chunk(NamedTuple):
    """As Made, for several images: (N, 3, H, W), (N,), (N,), (N,)."""

    pixels: Tensor
    labels: Tensor
    partner_labels: Tensor
    shares: Tensor
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TrainImages(Dataset):
    """Makes training images. Args: `mix` MixUp in the first half of a batch, CutMix in the second; `level` of
    RandAugment, None for none."""

    files: Files
    size: int
    seed: int
    flip: bool = True
    mix: bool = False
    alpha: float = MIXUP_ALPHA
    level: float | None = None
    layers: int = LAYERS

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
    """Test images, normalised as for ImageNet. What cannot be read has the label -1."""

    files: Files
    size: int
    style: str

    def __getitem__(self, index: int) -> Made:
        path, label = self.files.paths[index], int(self.files.labels[index])
        try:
            return Made(eval_image(decode(path, path), self.size, self.style), label, label, 1.0, ())
        except WorkbenchError as error:
            return Made(torch.zeros(3, self.size, self.size), -1, -1, 1.0, ((path, str(error)),))


def first_readable(files: Files, index: int, broken: list[tuple[str, str]]) -> tuple[Image.Image, int]:
    """The image at `index`, or the first after it that can be read; (path, reason) of those that cannot go to `broken`.

    Raises: WorkbenchError where none of the next hundred can.
    """
    for at in range(index, index + 100):
        path = files.paths[at % len(files)]
        try:
            return decode(path, path), at % len(files)
        except WorkbenchError as error:
            broken.append((path, str(error)))
    raise WorkbenchError(f"a hundred images one after another cannot be read, the last is {path}: is the disk there?")


def chunks(dataset: Dataset, indices: Iterable[list], workers: int, pin: bool = False) -> Iterator[Chunk]:
    """Makes the images of each list of `indices`, in their order, `workers` processes ahead of who asks (0: none).

    Raises: WorkbenchError where a worker dies or answers no more.
    """
    ahead = {"prefetch_factor": max(2, -(-AHEAD // (CHUNK * workers))), "timeout": TIMEOUT} if workers else {}
    options = {"collate_fn": _joined, "pin_memory": pin, "worker_init_fn": _quiet, **ahead}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: as was asked
        loader = DataLoader(dataset, batch_sampler=indices, num_workers=workers, **options)
    try:
        yield from loader
    except WorkbenchError as error:  # from a worker it comes with its traceback
        raise WorkbenchError(str(error).rpartition("WorkbenchError: ")[2].strip()) from None
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise WorkbenchError(
            f"a process that reads images broke off ({error}): memory may be short, set fewer workers."
        ) from error


def normalized(pixels: Tensor) -> Tensor:
    """(N, 3, H, W), from 0 to 255 -> float32 by ImageNet's mean and deviation."""
    mean, std = (torch.from_numpy(v).to(pixels.device).view(-1, 1, 1) for v in (MEAN_RGB, STD_RGB))
    return (pixels.float() - mean) / std


def _joined(made: list[Made]) -> Chunk:
    pixels, labels, partners, shares, unreadable = zip(*made, strict=True)
    return Chunk(
        torch.stack(pixels),
        torch.tensor(labels),
        torch.tensor(partners),
        torch.tensor(shares, dtype=torch.float32),
        tuple(each for some in unreadable for each in some),
    )


def _quiet(_: int) -> None:
    """A worker leaves Ctrl-C to its parent, and ends at once when told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.filterwarnings("ignore", module="PIL")
