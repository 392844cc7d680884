"""How well a network with weights does on labelled images: top-1, top-5, cross-entropy, images per second."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from workbench.data.decode import decode
from workbench.data.labelled import Labelled
from workbench.data.preprocess import eval_image
from workbench.errors import WorkbenchError, unknown
from workbench.models.once import standardized_once


@dataclass(frozen=True)
class Evaluation:
    """Counts over `n` images; `seconds` from the first batch to the last, reading and decoding included."""

    n: int
    top1: int
    top5: int
    loss: float  # mean cross-entropy; not finite where the network's outputs are not
    seconds: float
    not_finite: int = 0  # images for which an output was not a number

    @property
    def images_per_second(self) -> float:
        return self.n / self.seconds


def class_indices(data: Labelled, num_classes: int, order: Sequence[str] | None = None) -> list[int]:
    """Which output of the network each class of the data is.

    Args: `order` names the network's outputs, where the data has only some of its classes.
    Raises: WorkbenchError where the numbers do not agree and there is no order, or a class is not in it.
    """
    if order is None:
        if len(data.classes) != num_classes:
            raise WorkbenchError(
                f"{data.path} has {len(data.classes)} classes and the network {num_classes} outputs: give --classes, a "
                "file with the names of the outputs, one a line, in their order."
            )
        return list(range(num_classes))
    if len(order) != num_classes:
        raise WorkbenchError(f"--classes names {len(order)} outputs, but the network has {num_classes}.")
    index = {name: i for i, name in enumerate(order)}
    if len(index) < len(order):
        twice = next(name for i, name in enumerate(order) if index[name] != i)
        raise WorkbenchError(f"--classes names '{twice}' twice: each output needs a name of its own.")
    for name in data.classes:
        if name not in index:
            raise unknown("class among the network's outputs", name, order)
    return [index[name] for name in data.classes]


@torch.inference_mode()
def evaluate_images(
    model: nn.Module,
    data: Labelled,
    *,
    image_size: int,
    style: str,
    indices: Sequence[int],
    device: torch.device,
    batch_size: int = 64,
    workers: int = 4,
    progress: bool = True,
    moments: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> Evaluation:
    """Runs the network over all images, in evaluation mode and float32; threads decode while it computes.

    Args: `image_size`, `style` and `moments` (mean, std) as in workbench.data.preprocess.eval_image.
    """
    if batch_size < 1 or workers < 1:
        raise WorkbenchError(f"`batch_size` (={batch_size}) and `workers` (={workers}) must be at least 1.")
    model = model.to(device).eval()
    top1 = top5 = seen = broken = 0
    loss, started = 0.0, time.perf_counter()
    bar = tqdm(total=len(data), desc=f"{data.path.name} at {image_size} px", unit="image", disable=not progress)
    with bar, ThreadPoolExecutor(workers) as pool, standardized_once(model):
        try:
            for images, labels in _batches(data, indices, image_size, style, moments, batch_size, pool):
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                logits = model(images).float()
                ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
                finite = logits.isfinite().all(1, keepdim=True)  # what is not a number is not a right answer
                broken += int((~finite).sum())
                top1 += int((ranked[:, :1] & finite).sum())
                top5 += int((ranked & finite).sum())
                loss += F.cross_entropy(logits, labels, reduction="sum").item()
                seen += len(labels)
                bar.update(len(labels))
                bar.set_postfix_str(f"top-1 {top1 / seen:.1%}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return Evaluation(seen, top1, top5, loss / seen, time.perf_counter() - started, broken)


def _batches(
    data: Labelled,
    indices: Sequence[int],
    image_size: int,
    style: str,
    moments: tuple[Sequence[float], Sequence[float]],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (N, 3, H, W) and labels (N,), two of them being decoded while one is used."""

    def load(source, where: str) -> Tensor:
        return eval_image(decode(source, where), image_size, style, *moments)

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
        yield torch.stack([future.result() for future in futures]), torch.tensor(labels)
