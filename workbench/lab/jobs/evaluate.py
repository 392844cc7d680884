"""Evaluations of weights on a folder or parquet of images, each a run of the store."""

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
    """Result of `evaluate`.

    Attributes:
        run_id: The run that holds it.
        top1: Share of images whose best output is right, 0 to 1, with its Wilson interval.
        top5: Share of images with the right class among the five best outputs, likewise.
        loss: Mean cross-entropy.
        images_per_second: Speed of the evaluation.
        published: Published top-1 and top-5 in per cent. None: these are not released weights.
        not_finite: Number of images with outputs that are not finite.
    """

    run_id: str
    top1: Interval
    top5: Interval
    loss: float
    images_per_second: float
    published: tuple[float, float] | None
    not_finite: int


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
    """Load a network, evaluate it, and keep the result as a run.

    All arguments are checked before the first image is read.

    Args:
        model_name: A library model, or a user's network.
        weights: A file. None: the released weights of this model.
        data_path: A folder with one folder of images per class, or parquet.
        image_size: Pixels per side. None: as the file of weights states, else the model's test size.
        style: How images are cropped and resized. None: as the file of weights states, else the model's style.
        classes: Names of the network's outputs, if the data has only some of them.
        batch_size: Images at a time.
        workers: Threads that read images.
        device: "auto", "cpu", "cuda", ...
        progress: Whether to show a bar.

    Raises:
        WorkbenchError: If the weights belong to another network, the data is missing, the classes disagree, or an
            argument is out of range.
    """
    info = network_info(model_name)
    model_name = located(model_name)
    if weights is None and not is_library(model_name):
        raise WorkbenchError(f"{model_name} has no released weights. Give a file with `weights`.")
    torch_device, data = pick_device(device), open_labelled(data_path)
    file = find(weights or model_name, progress=progress)
    read = read_weights(file)
    preprocess = read.preprocess or {"image_size": info.test_size, "style": info.eval_style, "mean": (), "std": ()}
    size = preprocess["image_size"] if image_size is None else image_size
    style = preprocess["style"] if style is None else style
    if style not in STYLES:
        raise unknown("style of test images", style, STYLES)
    if not 8 <= size <= 4096:
        raise WorkbenchError(f"`image_size` must be at least 8 and at most 4096 pixels, got {size}.")
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise WorkbenchError(f"`{name}` must be at least 1, got {value}.")
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
        {"data": data.digest(), "weights_sha256": sha256(file)[:16], "device": _device_name(torch_device)},
        source="workbench evaluate",
    )
    try:
        measured = evaluate_images(
            model,
            data,
            image_size=size,
            style=style,
            indices=indices,
            device=torch_device,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            moments=(preprocess["mean"], preprocess["std"]),
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
    published_text = f"; published: {published[0]} %" if published else ""
    store.describe(run_id, f"top-1 {top1:.2%} of {measured.n:,} images, top-5 {top5:.2%}{published_text}")
    if measured.not_finite:
        metrics["not_finite"] = measured.not_finite
    store.log_metrics(run_id, metrics)
    store.set_tags(run_id, outcome="diverged" if measured.not_finite else "complete")
    store.close(run_id, "FINISHED")
    return Scores(run_id, top1, top5, measured.loss, measured.images_per_second, published, measured.not_finite)


def _network(name: str, weights: Weights, classes: int) -> nn.Module:
    """Build the network of this name as the file describes it, ready for its weights.

    The recipe of another network is ignored: `load_into` then reports the right name.
    """
    recipe = weights.recipe if weights.recipe and weights.recipe["name"] == name else {}
    if recipe.get("in_channels", 3) != 3:
        raise WorkbenchError(
            f"{weights.file} is for images with {recipe['in_channels']} channels, but evaluate reads RGB images. "
            "Use weights of a network with 3 channels."
        )
    num_classes = recipe.get("num_classes") or (weights.shape()[0] if is_library(name) else classes)
    return build_network(**{**recipe, "name": name, "num_classes": num_classes})


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
