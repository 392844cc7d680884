"""Evaluations in the store: a network with weights, over a folder or parquet of images, is a run like every other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from workbench.data.labelled import open_labelled
from workbench.data.preprocess import STYLES
from workbench.errors import WorkbenchError, unknown
from workbench.files import sha256
from workbench.lab.statistics.intervals import Interval, share_interval
from workbench.lab.store.client import Store
from workbench.models.zoo import entry
from workbench.networks import build_network, is_library, located, network_info
from workbench.training.evaluation import class_indices, evaluate_images
from workbench.training.setup import pick_device
from workbench.weights.checkpoints import load_into
from workbench.weights.reading import Weights, read_weights
from workbench.weights.released import find


@dataclass(frozen=True)
class Scores:
    """What `evaluate` found, shares from 0 to 1 with their Wilson intervals, and where it is kept."""

    run_id: str
    top1: Interval
    top5: Interval
    loss: float
    images_per_second: float
    published: tuple[float, float] | None  # per cent, for the released weights of this network
    not_finite: int  # images for which the network's outputs were no numbers


def evaluate(
    model_name: str,
    weights: str | Path | None,
    data_path: str | Path,
    *,
    image_size: int | None = None,
    style: str | None = None,
    classes: Sequence[str] | None = None,
    batch_size: int = 64,
    workers: int = 4,
    device: str = "auto",
    progress: bool = True,
) -> Scores:
    """Loads, evaluates and logs; everything is checked before the first image is read.

    Args: `weights` a file, or None for the released ones of this model; `image_size` and `style` default to what the
    file says of its images, else to the model's own; `classes` the names of the network's outputs where the data has
    only some of them.
    Raises: WorkbenchError for weights that belong to another network, data that are not there, classes that disagree.
    """
    info = network_info(model_name)
    model_name = located(model_name)
    if weights is None and not is_library(model_name):
        raise WorkbenchError(f"{model_name} has no released weights: name a file with `weights`.")
    where, data = pick_device(device), open_labelled(data_path)
    file = find(weights or model_name, progress=progress)
    read = read_weights(file)
    made = read.preprocess or {"image_size": info.test_size, "style": info.eval_style, "mean": (), "std": ()}
    size = made["image_size"] if image_size is None else image_size
    style = made["style"] if style is None else style
    if style not in STYLES:
        raise unknown("style of test images", style, STYLES)
    if not 8 <= size <= 4096:
        raise WorkbenchError(f"`image_size` (={size}) must be at least 8 pixels, and at most 4096.")
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise WorkbenchError(f"`{name}` (={value}) must be at least 1.")
    model = _network(model_name, read, len(classes or data.classes))
    load_into(model, read)
    indices = class_indices(data, model.num_classes, classes)

    store = Store()
    run_id = store.open_run(
        "evaluations",
        f"{model_name} {file.name} on {data.path.name}",
        {
            "model": model_name,
            "weights": file.name,
            "data": str(data.path),
            "images": len(data),
            "image_size": size,
            "style": style,
            "batch_size": batch_size,
        },
        {"data": data.digest(), "weights_sha256": sha256(file)[:16], "device": _device_name(where)},
        source="workbench evaluate",
    )
    try:
        measured = evaluate_images(
            model,
            data,
            image_size=size,
            style=style,
            indices=indices,
            device=where,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            moments=(made["mean"], made["std"]),
        )
    except BaseException as error:
        store.set_tags(run_id, outcome="failed", cause=f"{type(error).__name__}: {error}"[:500])
        store.close(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    top1, top5 = share_interval(measured.top1, measured.n), share_interval(measured.top5, measured.n)
    metrics = {"top1": top1.mean, "top1_low": top1.low, "top1_high": top1.high, "top5": top5.mean}
    metrics |= {
        "loss": measured.loss,
        "images_per_second": measured.images_per_second,
        "device_seconds": measured.seconds,
    }
    published = entry(model_name).published if file.name.endswith("_haiku.npz") else None
    if published:
        metrics |= {"published_top1": published[0] / 100, "published_top5": published[1] / 100}
    beside = f"; published: {published[0]} %" if published else ""
    store.describe(run_id, f"top-1 {top1:.2%} of {measured.n:,} images, top-5 {top5:.2%}{beside}")
    if measured.not_finite:
        metrics["not_finite"] = measured.not_finite
    store.log_metrics(run_id, metrics)
    store.set_tags(run_id, outcome="diverged" if measured.not_finite else "complete")
    store.close(run_id, "FINISHED")
    return Scores(run_id, top1, top5, measured.loss, measured.images_per_second, published, measured.not_finite)


def _network(name: str, weights: Weights, classes: int) -> nn.Module:
    """The network of this name as the file describes it, ready for its weights.

    A file of another network is not read for its shape: `load_into` names the right one.
    """
    recipe = weights.recipe if weights.recipe and weights.recipe["name"] == name else {}
    if recipe.get("in_channels", 3) != 3:
        raise WorkbenchError(
            f"{weights.file} takes images of {recipe['in_channels']} channels: evaluate knows RGB images."
        )
    num_classes = recipe.get("num_classes") or (weights.shape()[0] if is_library(name) else classes)
    return build_network(**{**recipe, "name": name, "num_classes": num_classes})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
