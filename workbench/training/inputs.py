"""The images of a training, and the batches of its steps.

A batch comes in parts (micro-batches) that are made when they are needed. Every random draw is a function of (seed,
step, micro-batch or position), so a step always gives the same batch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.data import Dataset, Split, dataset_digest, image_folder, load_dataset
from workbench.data.augment import cutout, flip_shift, generator_for, normalize, seed_for
from workbench.data.folders import ImageFolder
from workbench.data.mixing import mix_halves
from workbench.data.pixels import Preprocess
from workbench.training.config import TrainConfig
from workbench.training.distributed import World

EVAL_BATCH = 512
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), normalised; labels (N,), or distributions (N, classes)


def source(config: TrainConfig) -> Dataset | ImageFolder:
    """Return the images of a training: in memory, or a list of files if they are streamed.

    Raises:
        WorkbenchError: For data that does not exist or does not fit the configuration.
    """
    if config.stream:
        return image_folder(config.data)
    return load_dataset(config.data, config.image_size, config.unreadable)


def source_digest(config: TrainConfig) -> str:
    """Return a hash of the images.

    It is over their bytes, or over the file names and sizes of a large streamed folder.
    """
    return source(config).digest if config.stream else dataset_digest(config.data)


@dataclass(frozen=True)
class Part:
    """A micro-batch that is not made yet.

    Attributes:
        make: Makes the images and targets.
        share: Share of the whole batch, from 0 to 1.
        last: Whether it is the last micro-batch of this process in its step.
        seed: Seed of the network's draws (dropout, stochastic depth).
    """

    make: Callable[[], Batch]
    share: float
    last: bool
    seed: int

    def made(self) -> Batch:
        """Make the images and targets, and seed torch's generator for the draws of the network."""
        batch = self.make()
        torch.manual_seed(self.seed)
        return batch


class Inputs:
    """Batches of one training, from images in the memory of the device.

    Attributes:
        preprocess: How test images are made, which an evaluation of the weights repeats.
    """

    def __init__(self, config: TrainConfig, data: Dataset, world: World, device: torch.device):
        self.config, self.data, self.world = config, data, world
        self.train = data.train.take(slice(0, config.train_size)).to(device)
        self.mean, self.std = data.mean.to(device), data.std.to(device)
        self.flip = data.flip if config.flip is None else config.flip
        self.shift = self.train.images.shape[-1] // 8 if config.shift is None else config.shift
        height, width = data.test.images.shape[2:]
        moments = tuple(data.mean.tolist()), tuple(data.std.tolist())
        self.preprocess = Preprocess("fit", height, width, *moments, data.classes, data.listing)
        self._val = data.val.to(device)
        self.unreadable: set[str] = set()  # always empty: images that were skipped are not in the data

    def steps(self, total_steps: int, done: int = 0) -> Iterator[list[Part]]:
        """Yield the parts of each step for this process, without the first `done` steps."""
        pairs = orders(self.config, len(self.train), total_steps, done)
        for step, (index, partner) in enumerate(pairs, start=done + 1):
            yield self._parts(step, index, partner)

    def _parts(self, step: int, index: Tensor, partner: Tensor) -> list[Part]:
        indices, others = self.world.part(index), self.world.part(partner)
        first, size = micro_batches(self.config, self.world)
        pairs = list(zip(indices.split(size), others.split(size), strict=True))
        return [
            Part(
                make=lambda a=a, b=b, micro=first + i: self.prepared(step, micro, a, b),
                share=len(a) / len(index),
                last=i == len(pairs) - 1,
                seed=seed_for(self.config.seed, "forward", step, first + i),
            )
            for i, (a, b) in enumerate(pairs)
        ]

    def prepared(self, step: int, micro: int, part: Tensor, others: Tensor) -> Batch:
        """Make one micro-batch: normalised, with the augmentations of the configuration.

        Args:
            step: The step, counted from 1.
            micro: Number of the micro-batch in its step, counted over all processes.
            part: Indices (n,) of the images.
            others: Indices (n,) of the images to mix with.

        Returns:
            Images (n, C, H, W), and labels (n,) or, if images are mixed, distributions (n, classes).
        """
        config, device = self.config, self.train.images.device
        if config.mix:  # four quarters: images and partners of MixUp, images and partners of CutMix
            half = (len(part) + 1) // 2
            part = torch.cat([part[:half], others[:half], part[half:], others[half:]])
        x, y = self.train.images[part.to(device)], self.train.labels[part.to(device)]
        if self.flip or self.shift:
            x = flip_shift(x, generator_for(config.seed, "augment", step, micro), flip=self.flip, shift=self.shift)
        x = normalize(x, self.mean, self.std)
        if config.mix:
            rng = np.random.default_rng(seed_for(config.seed, "mix", step, micro))
            x, y = mix_halves(x, y, len(self.data.classes), rng, config.mixup_alpha)
        if config.cutout:
            x = cutout(x, generator_for(config.seed, "cutout", step, micro), config.cutout)
        return x, y

    def val(self) -> Iterator[Batch]:
        """Yield the validation split, in order."""
        return self._whole(self._val)

    def test(self) -> Iterator[Batch]:
        """Yield the test split, in order."""
        return self._whole(self.data.test.to(self.mean.device))

    def augmented(self, n: int) -> Iterator[Batch]:
        """Yield the first n training images, once and in order, with the augmentations of the training.

        The draws are those of step 0, which no training has. They depend on the seed only.
        """
        n = min(n, len(self.train))
        index, (partners,) = torch.arange(n), batches(n, n, self.config.seed, 1, "partners of statistics")
        pairs = zip(index.split(EVAL_BATCH), partners.split(EVAL_BATCH), strict=True)
        return (self.prepared(0, micro, part, others) for micro, (part, others) in enumerate(pairs))

    def _whole(self, split: Split) -> Iterator[Batch]:
        for x, y in zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True):
            yield self.preprocess.batch(x), y


def orders(config: TrainConfig, n: int, total_steps: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices (batch_size,) of each step's images and of their partners for mixing.

    Without mixing the partners are the images themselves. With mixing the partners follow a second, independent order,
    so a step draws twice the batch, as the authors do.

    Args:
        config: The configuration.
        n: Number of training images.
        total_steps: Steps of the whole training.
        done: Steps to leave out.
    """
    indices = batches(n, config.batch_size, config.seed, total_steps, done=done)
    if not config.mix:
        return ((index, index) for index in indices)
    return zip(indices, batches(n, config.batch_size, config.seed, total_steps, "partners", done), strict=True)


def batches(
    n: int, batch_size: int, seed: int, total_steps: int, what: str = "order", done: int = 0
) -> Iterator[Tensor]:
    """Yield the indices (batch_size,) of each step.

    Epochs follow each other without a gap, so no image is left out. Each epoch is one permutation, a function of
    (seed, what, epoch).

    Args:
        n: Number of training images.
        batch_size: Images per step.
        seed: Seed of the training.
        total_steps: Steps of the whole training.
        what: Name of the order, for independent orders with one seed.
        done: Steps to leave out.
    """
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for step in range(done, total_steps):
        at, index = step * batch_size, []
        while (missing := batch_size - sum(map(len, index))) > 0:
            if at // n != epoch:
                epoch = at // n
                order = torch.randperm(n, generator=generator_for(seed, what, epoch))
            index.append(order[at % n : at % n + missing])
            at += len(index[-1])
        yield torch.cat(index)


def micro_batches(config: TrainConfig, world: World) -> tuple[int, int]:
    """Return the number of this process's first micro-batch, and the images per micro-batch."""
    a_process = -(-config.batch_size // world.size)
    size = config.micro_batch or a_process
    return world.rank * -(-a_process // size), size
