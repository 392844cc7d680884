"""Compare gradients accumulated over parts of a batch with that of the whole batch."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.data import load_dataset
from workbench.data.augment import normalize
from workbench.models import create_model


def accumulated_gradient(model: nn.Module, x: Tensor, y: Tensor, micro_batch: int) -> Tensor:
    """Compute the gradient of the mean cross-entropy over a batch, accumulated over its parts.

    Args:
        model: The network. Its gradients are replaced.
        x: Images (N, C, H, W).
        y: Labels (N,).
        micro_batch: Samples in each part.

    Returns:
        The gradient of all parameters, (P,).
    """
    model.zero_grad(set_to_none=True)
    for images, labels in zip(x.split(micro_batch), y.split(micro_batch), strict=True):
        (F.cross_entropy(model(images), labels) * len(images) / len(x)).backward()
    return torch.cat([cast(Tensor, p.grad).flatten() for p in model.parameters()])


def gradient_differences(
    arms: Mapping[str, tuple[str, dict]],
    micro_batches: Iterable[int],
    seeds: Iterable[int],
    data: str,
    batch_size: int,
    progress: Callable[[list[int], str], Iterable[int]] = lambda items, name: items,
    image_size: int | None = None,
) -> pd.DataFrame:
    """Compare accumulated gradients with those of the whole batch, at initialisation.

    The comparison is in float64. The difference is |accumulated - whole| / |whole|. The classifier's weights are drawn
    from N(0, 0.01^2), because a classifier that starts at zero stops the gradient.

    Args:
        arms: By label the name of a library network, and the arguments that build it.
        micro_batches: Samples in each part, one value per comparison.
        seeds: Seeds of the weights and of the batch.
        data: Name of the data set.
        batch_size: Samples in the whole batch.
        progress: Wraps the list of seeds, with a label, to show progress.
        image_size: Height and width of the images, pixels. None: as in the data set.

    Returns:
        One row per seed, arm and size, with the columns arm, micro_batch, seed and difference.
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
                nn.init.normal_(cast(nn.Linear, model.linear).weight, std=0.01)
            at_once = accumulated_gradient(copy.deepcopy(model), x, y, batch_size)
            for size in micro_batches:
                parts = accumulated_gradient(copy.deepcopy(model), x, y, size)
                difference = ((parts - at_once).norm() / at_once.norm()).item()
                rows.append({"arm": arm, "micro_batch": size, "seed": seed, "difference": difference})
    return pd.DataFrame(rows)
