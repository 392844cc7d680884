"""What a step trains on: images gathered, moved, normalised and mixed on the device, in a few operations a batch.

Every draw is a function of (seed, step, micro-batch), so the same step gives the same batch whenever it is asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workbench.data import Dataset, Split
from workbench.data.augment import cutout, flip_shift, generator_for, normalize, seed_for
from workbench.data.mixing import mix_halves
from workbench.training.config import TrainConfig
from workbench.training.distributed import World


@dataclass
class Inputs:
    """Batches of one training, from a split that lies on the device."""

    config: TrainConfig
    split: Split
    data: Dataset
    mean: Tensor
    std: Tensor
    world: World = field(default_factory=World)

    def __post_init__(self):
        self.flip = self.data.flip if self.config.flip is None else self.config.flip
        self.shift = self.split.images.shape[-1] // 8 if self.config.shift is None else self.config.shift

    def steps(self, total_steps: int, done: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices (batch_size,) of each step's images, and of those they are mixed with (the same where they are not);
        the first `done` steps are passed over.

        The partners go through the data in an order of their own, so mixing draws twice the batch, as the authors do.
        """
        n, seed = len(self.split), self.config.seed
        own = batches(n, self.config.batch_size, seed, total_steps, done=done)
        if not self.config.mix:
            yield from ((index, index) for index in own)
            return
        yield from zip(own, batches(n, self.config.batch_size, seed, total_steps, "partners", done), strict=True)

    def parts(self, step: int, index: Tensor, partner: Tensor) -> list["Part"]:
        """This process's micro-batches of a step; parts that do not divide evenly are weighted rightly."""
        own, others = self.world.part(index), self.world.part(partner)
        size = self.config.micro_batch or len(index)
        before = self.world.rank * -(-len(index) // self.world.size // size)  # micro-batches of the processes before
        pairs = list(zip(own.split(size), others.split(size), strict=True))
        return [
            Part(self, step, before + i, a, b, len(a) / len(index), last=i == len(pairs) - 1)
            for i, (a, b) in enumerate(pairs)
        ]

    def prepared(self, step: int, micro: int, part: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, C, H, W), and labels (n,) or distributions (n, classes)."""
        config, device = self.config, self.split.images.device
        if config.mix:  # quarters: images and partners of MixUp, images and partners of CutMix
            half = (len(part) + 1) // 2
            part = torch.cat([part[:half], others[:half], part[half:], others[half:]])
        x, y = self.split.images[part.to(device)], self.split.labels[part.to(device)]
        if self.flip or self.shift:
            x = flip_shift(x, generator_for(config.seed, "augment", step, micro), flip=self.flip, shift=self.shift)
        x = normalize(x, self.mean, self.std)
        if config.mix:
            rng = np.random.default_rng(seed_for(config.seed, "mix", step, micro))
            x, y = mix_halves(x, y, len(self.data.classes), rng, config.mixup_alpha)
        if config.cutout:
            x = cutout(x, generator_for(config.seed, "cutout", step, micro), config.cutout)
        return x, y


@dataclass(frozen=True)
class Part:
    """A micro-batch before it is made: `share` of the batch, `last` of this process's."""

    inputs: Inputs
    step: int
    micro: int
    own: Tensor
    others: Tensor
    share: float
    last: bool

    def __len__(self) -> int:
        return len(self.own)

    def made(self) -> tuple[Tensor, Tensor]:
        """Its images and targets, and the generator set for what the network draws (dropout, stochastic depth)."""
        x, y = self.inputs.prepared(self.step, self.micro, self.own, self.others)
        torch.manual_seed(seed_for(self.inputs.config.seed, "forward", self.step, self.micro))
        return x, y


def batches(
    n: int, batch_size: int, seed: int, total_steps: int, what: str = "order", done: int = 0
) -> Iterator[Tensor]:
    """Indices (batch_size,) of each step after the first `done`: every epoch is one permutation, a function of (seed,
    what, epoch)."""
    per_epoch, order = n // batch_size, None
    for step in range(done, total_steps):
        epoch, i = divmod(step, per_epoch)
        if i == 0 or order is None:
            order = torch.randperm(n, generator=generator_for(seed, what, epoch))
        yield order[i * batch_size : (i + 1) * batch_size]
