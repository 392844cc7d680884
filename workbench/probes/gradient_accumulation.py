"""Whether a gradient that is accumulated over the parts of a batch is that of the batch."""

import copy
from collections.abc import Iterable, Mapping

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.models import create_model


def accumulated_gradient(model: nn.Module, x: Tensor, y: Tensor, micro_batch: int) -> Tensor:
    """The gradient (P,) of the mean cross-entropy over the batch, accumulated over parts of this size."""
    model.zero_grad(set_to_none=True)
    for images, labels in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
        (F.cross_entropy(model(images), labels) * len(images) / len(x)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_differences(
    arms: Mapping[str, tuple[str, dict]],
    micro_batches: Iterable[int],
    seeds: Iterable[int],
    data: str,
    batch_size: int,
    progress=lambda items, name: items,
    image_size: int | None = None,
) -> pd.DataFrame:
    """|accumulated - at once| / |at once| of the gradient of one batch of images, in float64, at initialisation.

    One row an arm, size and seed: arm, micro_batch, seed, difference.
    Args: `arms` {label: (model, arguments)}; a classifier that starts at zero is drawn, for it would stop the gradient.
    """
    dataset = load_dataset(data, image_size)
    rows = []
    for seed in progress(list(seeds), "gradients"):
        order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:batch_size]
        x = normalize(dataset.train.images[order], dataset.mean, dataset.std).double()
        y = dataset.train.labels[order]
        for arm, (name, arguments) in arms.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = create_model(name, len(dataset.classes), in_channels=dataset.channels, **arguments).double()
                nn.init.normal_(model.linear.weight, std=0.01)
            at_once = accumulated_gradient(copy.deepcopy(model), x, y, batch_size)
            for size in micro_batches:
                parts = accumulated_gradient(copy.deepcopy(model), x, y, size)
                difference = ((parts - at_once).norm() / at_once.norm()).item()
                rows.append({"arm": arm, "micro_batch": size, "seed": seed, "difference": difference})
    return pd.DataFrame(rows)
