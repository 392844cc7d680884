"""Batches of images that do not fit into memory. Worker processes make them in advance."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.bars import write
from workbench.data.augment import cutout, generator_for, seed_for
from workbench.data.folders import Files, ImageFolder
from workbench.data.mixing import mixed_labels
from workbench.data.pixels import Preprocess
from workbench.data.streaming import CHUNK, Chunk, EvalImages, Request, TrainImages, chunks, normalized
from workbench.errors import WorkbenchError
from workbench.machine import cores
from workbench.networks import network_info
from workbench.training.config import TrainConfig
from workbench.training.distributed import World
from workbench.training.inputs import Batch, Part, micro_batches, orders


class StreamedInputs:
    """Like `Inputs`, but reads the images from a folder during the training.

    Training images are crops of random boxes. Test images are cut as the model's evaluation does.

    Args:
        config: The configuration.
        data: The files.
        world: The processes of the training.
        device: Where the batches go.

    Attributes:
        preprocess: How test images are made, which an evaluation of the weights repeats.
        unreadable: Paths of the images that were skipped so far.
    """

    def __init__(self, config: TrainConfig, data: ImageFolder, world: World, device: torch.device):
        self.config, self.data, self.world, self.device = config, data, world, device
        self.train = data.train.take(torch.arange(min(config.train_size or len(data.train), len(data.train))))
        model = network_info(config.model)
        self.size = config.image_size or model.train_size
        eval_size = config.eval_size or config.image_size or model.test_size
        self.preprocess = Preprocess(
            model.eval_style, eval_size, eval_size, classes=data.classes, trained_on=data.listing
        )
        self.workers = default_workers(world) if config.workers is None else config.workers
        self.unreadable: set[str] = set()

    def steps(self, total_steps: int, done: int = 0) -> Iterator[list[Part]]:
        """Yield the parts of each step for this process, without the first `done` steps.

        The parts must be made in order.
        """
        config = self.config
        images = TrainImages(
            self.train,
            self.size,
            config.seed,
            flip=config.flip is not False,
            mix=config.mix,
            alpha=config.mixup_alpha,
            level=config.rand_augment,
            layers=config.rand_augment_layers,
        )
        made = chunks(images, self._requests(total_steps, done), self.workers, pin=self.device.type == "cuda")
        first, size = micro_batches(config, self.world)
        lengths = [len(part) for part in self._positions().split(size)]
        for step in range(done + 1, total_steps + 1):
            yield [
                Part(
                    make=functools.partial(self._batch, made, n, step, first + i),
                    share=n / config.batch_size,
                    last=i == len(lengths) - 1,
                    seed=seed_for(config.seed, "forward", step, first + i),
                )
                for i, n in enumerate(lengths)
            ]

    def _positions(self) -> Tensor:
        return self.world.part(torch.arange(self.config.batch_size))

    def _requests(self, total_steps: int, done: int) -> Iterator[list[Request]]:
        positions, size = self._positions(), micro_batches(self.config, self.world)[1]
        pieces = [piece.tolist() for part in positions.split(size) for piece in part.split(CHUNK)]
        pairs = orders(self.config, len(self.train), total_steps, done)
        for step, (index, partner) in enumerate(pairs, start=done + 1):
            indices, others = index.tolist(), partner.tolist()
            for piece in pieces:
                yield [Request(step, p, len(indices), indices[p], others[p]) for p in piece]

    def _batch(self, made: Iterator[Chunk], n: int, step: int, micro: int) -> Batch:
        parts = [self._reported(next(made)) for _ in range(-(-n // CHUNK))]
        pixels, labels, partners, shares = (
            torch.cat(tensors).to(self.device, non_blocking=True)
            for tensors in zip(*(part[:4] for part in parts), strict=True)
        )
        x = normalized(pixels)
        if self.config.cutout:
            x = cutout(x, generator_for(self.config.seed, "cutout", step, micro), self.config.cutout)
        return x, mixed_labels(labels, partners, shares, len(self.data.classes)) if self.config.mix else labels

    def _reported(self, chunk: Chunk) -> Chunk:
        """Return the chunk after reporting its unreadable images: as an error, or once as a line."""
        for path, reason in chunk.unreadable:
            if self.config.unreadable == "refuse":
                raise WorkbenchError(f"{reason.removesuffix('.')}, or set unreadable=skip to continue without it.")
            if path not in self.unreadable:
                self.unreadable.add(path)
                write(f"skipped: {reason}")
        return chunk

    def val(self) -> Iterator[Batch]:
        """Yield the validation split, in order."""
        return self._whole(self.data.val)

    def test(self) -> Iterator[Batch]:
        """Yield the test split, in order."""
        return self._whole(self.data.test)

    def _whole(self, files: Files) -> Iterator[Batch]:
        indices = [list(range(start, min(start + CHUNK, len(files)))) for start in range(0, len(files), CHUNK)]
        images = EvalImages(files, self.preprocess)
        for chunk in chunks(images, indices, self.workers, pin=self.device.type == "cuda"):
            read = self._reported(chunk).labels >= 0
            pixels = chunk.pixels[read].to(self.device, non_blocking=True)
            yield pixels, chunk.labels[read].to(self.device, non_blocking=True)


def default_workers(world: World) -> int:
    """Return one worker per core, shared among the processes of a torchrun, at most 16."""
    return max(1, min(16, cores() // world.size))
