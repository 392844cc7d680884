"""What a training learns from: its source, and the batches of each step as parts that are made when they are needed.

Every draw is a function of (seed, step, micro-batch or position), so the same step gives the same batch whenever it is
asked for.
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
from workbench.training.config import TrainConfig
from workbench.training.distributed import World

EVAL_BATCH = 512
Batch = tuple[Tensor, Tensor]  # images (N, C, H, W), normalised; labels (N,), or distributions (N, classes)


def source(config: TrainConfig) -> Dataset | ImageFolder:
    """The images of a training: in memory, or a list of files where they are streamed.

    Raises: WorkbenchError for what is not there or cannot serve the configuration.
    """
    if config.stream:
        return image_folder(config.data)
    return load_dataset(config.data, config.image_size, config.unreadable)


def source_digest(config: TrainConfig) -> str:
    """Names the images of a training: by their bytes, or by names and sizes of the files where they are streamed."""
    return source(config).digest if config.stream else dataset_digest(config.data)


@dataclass(frozen=True)
class Part:
    """A micro-batch before it is made: `share` of the batch, `last` of this process's."""

    make: Callable[[], Batch]
    share: float
    last: bool
    seed: int

    def made(self) -> Batch:
        """Its images and targets, and the generator set for what the network draws (dropout, stochastic depth)."""
        batch = self.make()
        torch.manual_seed(self.seed)
        return batch


class Inputs:
    """Batches of one training, from images that lie in memory, on the device; a few operations a batch."""

    def __init__(self, config: TrainConfig, data: Dataset, world: World, device: torch.device):
        self.config, self.data, self.world = config, data, world
        self.train = data.train.take(slice(0, config.train_size)).to(device)
        self.mean, self.std = data.mean.to(device), data.std.to(device)
        self.flip = data.flip if config.flip is None else config.flip
        self.shift = self.train.images.shape[-1] // 8 if config.shift is None else config.shift
        self._val = data.val.to(device)
        self.unreadable: set[str] = set()  # those skipped are not in the data

    def steps(self, total_steps: int, done: int = 0) -> Iterator[list[Part]]:
        """This process's parts of each step after the first `done`."""
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
        """The images with these indices, augmented, and mixed with the others where that is asked for."""
        config, device = self.config, self.train.images.device
        if config.mix:  # quarters: images and partners of MixUp, images and partners of CutMix
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
        """The validation split, in order."""
        return self._whole(self._val)

    def test(self) -> Iterator[Batch]:
        """The test split, in order."""
        return self._whole(self.data.test.to(self.mean.device))

    def plain(self, n: int) -> Iterator[Batch]:
        """The first n training images, as they are."""
        return self._whole(self.train.take(slice(0, n)))

    def _whole(self, split: Split) -> Iterator[Batch]:
        for x, y in zip(split.images.split(EVAL_BATCH), split.labels.split(EVAL_BATCH), strict=True):
            yield normalize(x, self.mean, self.std), y

    @property
    def preprocess(self) -> dict:
        """How the images are made, for who evaluates the weights."""
        size = self.train.images.shape[-1]
        return {"mean": self.data.mean.tolist(), "std": self.data.std.tolist(), "image_size": size, "style": "whole"}


def orders(config: TrainConfig, n: int, total_steps: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices (batch_size,) of each step's images, and of those they are mixed with (the same where they are not).

    The partners go through the data in an order of their own, so mixing draws twice the batch, as the authors do.
    """
    indices = batches(n, config.batch_size, config.seed, total_steps, done=done)
    if not config.mix:
        return ((index, index) for index in indices)
    return zip(indices, batches(n, config.batch_size, config.seed, total_steps, "partners", done), strict=True)


def batches(
    n: int, batch_size: int, seed: int, total_steps: int, what: str = "order", done: int = 0
) -> Iterator[Tensor]:
    """Indices (batch_size,) of each step after the first `done`: one epoch after the other, with no image left out;
    every epoch is one permutation, a function of (seed, what, epoch)."""
    epoch, order = -1, None
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
    """(number of this process's first micro-batch, images in one)."""
    a_process = -(-config.batch_size // world.size)
    size = config.micro_batch or a_process
    return world.rank * -(-a_process // size), size
