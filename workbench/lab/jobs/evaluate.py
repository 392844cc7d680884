"""Evaluations of weights on labelled images, each a run of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.data.labelled import ALL, Labelled, images_path, open_labelled
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError, unknown
from workbench.files import sha256
from workbench.lab.jobs.stored_network import network_with, outputs_of, preprocess_of
from workbench.lab.statistics.intervals import Interval, share_interval
from workbench.lab.store.client import Store
from workbench.lab.store.closing import closing
from workbench.models.zoo import entry
from workbench.networks import is_library, located
from workbench.outcomes import COMPLETE, DIVERGED
from workbench.training.evaluation import Evaluation, class_indices, evaluate_images
from workbench.training.setup import pick_device
from workbench.weights.reading import read_weights
from workbench.weights.released import find

UNREADABLE = ("refuse", "skip")
FEW = 6  # below so many outputs a top-5 accuracy says nothing


@dataclass(frozen=True)
class Scores:
    """Result of `evaluate`.

    Attributes:
        run_id: The run that holds it.
        top1: Share of images whose best output is right, 0 to 1, with its Wilson interval.
        top5: Share of images with the right class among the five best outputs, likewise. None: fewer than six outputs.
        loss: Mean cross-entropy.
        images_per_second: Speed of the evaluation.
        published: Published top-1 and top-5 in per cent. None: these are not released weights.
        not_finite: Number of images with outputs that are not finite.
        split: The images that were scored: "all", "train", "val" or "test".
        trained_on: Whether the weights were trained on some of the scored images, as far as their file tells.
    """

    run_id: str
    top1: Interval
    top5: Interval | None
    loss: float
    images_per_second: float
    published: tuple[float, float] | None
    not_finite: int
    split: str = ALL
    trained_on: bool = False


def evaluate(
    model_name: str,
    weights: str | Path | None,
    data_path: str | Path,
    *,
    split: str | None = None,
    image_size: int | None = None,
    style: str | None = None,
    classes: Sequence[str] | None = None,
    unreadable: str = "refuse",
    batch_size: int = 64,
    workers: int = 4,
    device: str = "auto",
    progress: bool = True,
) -> Scores:
    """Load a network, evaluate it, and keep the result as a run.

    The file of a training states how test images are made and what the outputs stand for. The test split of its data
    then has the accuracy that the training reported. All arguments are checked before the first image is read.

    Args:
        model_name: A library model, or a user's network.
        weights: A file. None: the released weights of this model.
        data_path: A data set, a folder with one folder of images per class, or parquet.
        split: "all", "train", "val" or "test". None: the test split, if the data or the file of weights has one.
        image_size: Pixels per side. None: as the file of weights states, else the model's test size.
        style: How images are cropped and resized. None: as the file of weights states, else the model's style.
        classes: Names of the network's outputs. None: those in the file of weights, else all classes of the data.
        unreadable: "refuse" raises an error for an image that cannot be read. "skip" reports it and leaves it out.
        batch_size: Images at a time.
        workers: Threads that read images.
        device: "auto", "cpu", "cuda", ...
        progress: Whether to show a bar.

    Raises:
        WorkbenchError: If the weights belong to another network, the data is missing, the classes disagree, or an
            argument is out of range.
    """
    model_name = located(model_name)
    _check(model_name, weights, image_size, unreadable, batch_size, workers)
    images_path(data_path)  # before weights are fetched
    torch_device = pick_device(device)
    file = find(weights or model_name, progress=progress)
    read = read_weights(file)
    preprocess = preprocess_of(model_name, read).resized(image_size, style)
    data = open_labelled(data_path, split, preprocess.trained_on)
    classes = classes or preprocess.classes or None
    model = network_with(model_name, read, preprocess, len(classes or data.classes))
    outputs = model.num_classes if is_library(model_name) else outputs_of(model, model_name, preprocess)
    indices = class_indices(data, outputs, classes)

    store = Store()
    parameters = {"model": model_name, "weights": file.name, "data": str(data.path), "split": data.split}
    parameters |= {"images": len(data), "image_size": preprocess.to_dict()["image_size"], "style": preprocess.style}
    run_id = store.open_run(
        "evaluations",
        f"{model_name} {file.name} on {data.path.name}",
        {**parameters, "batch_size": batch_size},
        {"data": data.digest, "weights_sha256": sha256(file)[:16], "device": _device_name(torch_device)},
        source="workbench evaluate",
    )
    options = {"batch_size": batch_size, "workers": workers, "unreadable": unreadable, "progress": progress}
    published = entry(model_name).published if file.name.endswith("_haiku.npz") else None
    with closing(store, run_id):
        measured = evaluate_images(model, data, preprocess, indices=indices, device=torch_device, **options)
        scores = _scores(run_id, measured, outputs, published, data, preprocess)
        _record(store, scores, measured)
    return scores


def _check(
    model_name: str,
    weights: str | Path | None,
    image_size: int | None,
    unreadable: str,
    batch_size: int,
    workers: int,
) -> None:
    if weights is None and not is_library(model_name):
        raise WorkbenchError(f"{model_name} has no released weights. Give a file with `weights`.")
    if unreadable not in UNREADABLE:
        raise unknown("value of `unreadable`", unreadable, UNREADABLE)
    if image_size is not None and not 8 <= image_size <= 4096:
        raise WorkbenchError(f"`image_size` must be at least 8 and at most 4096 pixels, got {image_size}.")
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise WorkbenchError(f"`{name}` must be at least 1, got {value}.")


def _scores(
    run_id: str,
    measured: Evaluation,
    outputs: int,
    published: tuple[float, float] | None,
    data: Labelled,
    preprocess: Preprocess,
) -> Scores:
    seen = bool(data.listing) and data.listing == preprocess.trained_on and data.split in (ALL, "train")
    return Scores(
        run_id,
        share_interval(measured.top1, measured.n),
        share_interval(measured.top5, measured.n) if outputs >= FEW else None,
        measured.loss,
        measured.images_per_second,
        published,
        measured.not_finite,
        data.split,
        seen,
    )


def _record(store: Store, scores: Scores, measured: Evaluation) -> None:
    top1, top5, published = scores.top1, scores.top5, scores.published
    metrics = {"top1": top1.mean, "top1_low": top1.low, "top1_high": top1.high}
    metrics |= {"top5": top5.mean} if top5 else {}
    metrics |= {
        "loss": measured.loss,
        "images_per_second": measured.images_per_second,
        "device_seconds": measured.seconds,
    }
    if published:
        metrics |= {"published_top1": published[0] / 100, "published_top5": published[1] / 100}
    if measured.not_finite:
        metrics["not_finite"] = measured.not_finite
    top5_text = f", top-5 {top5:.2%}" if top5 else ""
    published_text = f"; published: {published[0]} %" if published else ""
    store.describe(scores.run_id, f"top-1 {top1:.2%} of {measured.n:,} images{top5_text}{published_text}")
    store.log_metrics(scores.run_id, metrics)
    store.set_tags(scores.run_id, outcome=DIVERGED if measured.not_finite else COMPLETE)
    store.close(scores.run_id, "FINISHED")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
