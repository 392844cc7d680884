"""Evaluate a network on labelled images: top-1, top-5, cross-entropy, images per second."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.bars import bar, write
from workbench.data.decode import decode
from workbench.data.labelled import Labelled
from workbench.data.memory import UNREADABLE_CURE
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError, unknown
from workbench.memory_layout import arrange_if_it_runs, faster
from workbench.models.once import standardized_once


@dataclass(frozen=True)
class Evaluation:
    """Counts over the images of an evaluation.

    Attributes:
        n: Number of images.
        top1: Images whose label has the largest output.
        top5: Images whose label is among the five largest outputs.
        loss: Mean cross-entropy. It is not finite if an output of the network is not finite.
        seconds: Time from the first batch to the last, with reading and decoding.
        not_finite: Images for which an output was not finite.
    """

    n: int
    top1: int
    top5: int
    loss: float
    seconds: float
    not_finite: int = 0

    @property
    def images_per_second(self) -> float:
        """Images per second, with reading and decoding."""
        return self.n / self.seconds


def class_indices(data: Labelled, num_classes: int, order: Sequence[str] | None = None) -> list[int]:
    """Return for each class of the data the index of its output.

    Args:
        data: The images.
        num_classes: Number of outputs of the network.
        order: Names of the outputs. Without them the order of the classes must be that of the outputs.

    Raises:
        WorkbenchError: If there is no order and the numbers of classes and outputs differ, if the order has another
            length or a name twice, or if it lacks a class.
    """
    if order is None:
        if len(data.classes) != num_classes:
            raise WorkbenchError(
                f"{data.path} has {len(data.classes)} classes and the network {num_classes} outputs. Give --classes, a "
                "file with the names of the outputs in their order, one per line."
            )
        return list(range(num_classes))
    if len(order) != num_classes:
        raise WorkbenchError(
            f"The classes name {len(order)} outputs, but the network has {num_classes}. Name each output once."
        )
    index = {name: i for i, name in enumerate(order)}
    if len(index) < len(order):
        repeated = next(name for i, name in enumerate(order) if index[name] != i)
        raise WorkbenchError(f"The classes name '{repeated}' twice. Give each output a different name.")
    for name in data.classes:
        if name not in index:
            raise unknown("class among the network's outputs", name, order)
    return [index[name] for name in data.classes]


@torch.inference_mode()
def evaluate_images(
    model: nn.Module,
    data: Labelled,
    preprocess: Preprocess,
    *,
    indices: Sequence[int],
    device: torch.device,
    batch_size: int = 64,
    workers: int = 4,
    unreadable: str = "refuse",
    progress: bool = True,
) -> Evaluation:
    """Evaluate a network on all images, in evaluation mode and float32.

    Threads decode the next images while the network computes.

    Args:
        model: The network. It is moved to `device`.
        data: The images.
        preprocess: How they are made.
        indices: The output of each class, see `class_indices`.
        device: Where the network runs.
        batch_size: Images per batch.
        workers: Threads that decode images.
        unreadable: "refuse" raises an error for an image that cannot be read. "skip" reports it and leaves it out.
        progress: Show a progress bar.

    Raises:
        WorkbenchError: If `batch_size` or `workers` is below 1, or an image cannot be read.
    """
    if batch_size < 1 or workers < 1:
        raise WorkbenchError(f"`batch_size` and `workers` must be at least 1, got {batch_size} and {workers}.")
    model = model.to(device).eval()
    example = torch.zeros(2, preprocess.channels, preprocess.height, preprocess.width, device=device)
    arrange_if_it_runs(model, faster(device), example)
    top1 = top5 = seen = not_finite = 0
    loss, started = 0.0, time.perf_counter()
    shown = f"{data.path.name} at {preprocess.width} px"
    counter = bar(len(data), desc=shown, unit="image", shown=progress, leave=True)
    with counter, ThreadPoolExecutor(workers) as pool, standardized_once(model):
        try:
            for images, labels in _batches(data, indices, preprocess, batch_size, pool, unreadable):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                logits = model(preprocess.batch(images)).float()
                finite = logits.isfinite().all(1)  # an output that is not finite counts as wrong
                right = (logits.argmax(1) == labels) & finite  # as a training counts, also where outputs are equal
                among = (logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).any(1) & finite
                not_finite += int((~finite).sum())
                top1 += int(right.sum())
                top5 += int((right | among).sum())
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                seen += len(labels)
                counter.set_postfix_str(f"top-1 {top1 / seen:.1%}", refresh=False)
                counter.update(len(labels))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if seen == 0:
        raise WorkbenchError(f"None of the {len(data)} images of {data.path} can be read. The lines above name them.")
    return Evaluation(seen, top1, top5, loss / seen, time.perf_counter() - started, not_finite)


def _batches(
    data: Labelled,
    indices: Sequence[int],
    preprocess: Preprocess,
    batch_size: int,
    pool: ThreadPoolExecutor,
    unreadable: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches (N, C, H, W) and labels (N,). Two batches are decoded while one is used."""

    def load(source, where: str) -> Tensor | None:
        try:
            return preprocess.made(decode(source, where, UNREADABLE_CURE, preprocess.channels))
        except WorkbenchError as error:
            if unreadable == "refuse":
                raise
            write(f"skipped: {str(error).removesuffix(f' {UNREADABLE_CURE}.')}")
            return None

    items = iter(data)
    waiting: list[tuple[list[Future], list[int]]] = []
    while True:
        while len(waiting) < 3:
            chunk = list(islice(items, batch_size))
            if not chunk:
                break
            futures = [pool.submit(load, source, where) for source, _, where in chunk]
            waiting.append((futures, [indices[label] for _, label, _ in chunk]))
        if not waiting:
            return
        futures, labels = waiting.pop(0)
        made = [(future.result(), label) for future, label in zip(futures, labels, strict=True)]
        if read := [(image, label) for image, label in made if image is not None]:
            images, labels = zip(*read, strict=True)
            yield torch.stack(images), torch.tensor(labels)
