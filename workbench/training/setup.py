"""What a training starts from: network, parameter groups, length, device and memory layout."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from workbench.data import Dataset
from workbench.data.folders import ImageFolder
from workbench.errors import WorkbenchError
from workbench.memory_layout import arrange, arrange_if_it_runs, faster
from workbench.networks import NORMFREE, build_network, is_library
from workbench.optim import param_groups
from workbench.optim.classifier import classifier_weights
from workbench.training.config import AUTO, TrainConfig
from workbench.weights.checkpoints import load_checkpoint


def initial_model(config: TrainConfig, data: Dataset | ImageFolder) -> nn.Module:
    """Build the network that a training starts from.

    Its weights are drawn at random, or are those of `config.weights`. If these have another number of classes, the
    classifier is drawn.

    Args:
        config: The configuration.
        data: The images, which set the number of classes and channels.

    Raises:
        WorkbenchError: For weights of another network.
    """
    if config.weights is None:
        arguments = config.model_args
        if config.model.startswith(NORMFREE):  # normfree runs the network once, on images of this size
            arguments = {"image_size": _pixels(config, data), **arguments}
        return build_network(config.model, len(data.classes), data.channels, **arguments)
    shape = {"num_classes": len(data.classes), "in_channels": data.channels}
    model = load_checkpoint(config.weights, progress=config.progress, **shape, **config.model_args)
    recipe = cast(dict, model.recipe)  # set by load_checkpoint
    if recipe["name"] != config.model:
        raise WorkbenchError(
            f"`weights` (={config.weights}) are of {recipe['name']}, but `model` is {config.model}. Set `model` to the "
            "network of the weights, or choose other weights."
        )
    return model


def _pixels(config: TrainConfig, data: Dataset | ImageFolder) -> int | None:
    """Return the side of the images in pixels, or None for streamed images without a given size."""
    return data.train.images.shape[-1] if isinstance(data, Dataset) else config.image_size


def example_input(config: TrainConfig, data: Dataset | ImageFolder) -> Tensor | None:
    """Return two black images (2, C, H, W) of the training's size, or None if the size is not known."""
    side = _pixels(config, data)
    return None if side is None else torch.zeros(2, data.channels, side, side)


def groups_of(
    model: nn.Module,
    config: TrainConfig,
    example: Tensor | None = None,
    classifier: Iterable[str] | None = None,
) -> list[dict]:
    """Return the parameter groups of this training, with the decay and the clipping of each.

    Args:
        model: The network.
        config: The configuration.
        example: An input, for networks whose output cannot be followed without.
        classifier: The names of the classifier's weights. None: those that produce the output.

    Raises:
        WorkbenchError: If nothing decides which weight is the classifier, or `clip_head` is set and there is none.
    """
    heads = _classifier(model, config, example) if classifier is None else list(classifier)
    overrides: dict[str, dict[str, float | None]] = {pattern: {"clip": None} for pattern in config.clip_exempt}
    if config.clip_head and not heads:
        raise WorkbenchError(
            f"`clip_head` clips the classifier's weight, but {type(model).__name__} has none. Use clip_head=False."
        )
    if config.clip_head:
        overrides |= {name: {"clip": config.clip} for name in heads}
    return param_groups(
        model,
        config.weight_decay,
        config.clip,  # pyright: ignore[reportArgumentType]  # has no annotation there, and may be None
        overrides,
        classifier=heads,
    )


def _classifier(model: nn.Module, config: TrainConfig, example: Tensor | None) -> list[str]:
    """Return the names of the classifier's weights. `clip_exempt` can name them if nothing else decides."""
    try:
        return classifier_weights(model, example)
    except WorkbenchError as error:
        if config.clip is None or (config.clip_exempt and not config.clip_head):
            return []
        raise WorkbenchError(
            f"Nothing decides which weight of {type(model).__name__} is the classifier, which AGC must not clip. "
            "Name it in `clip_exempt`."
        ) from error


def steps_of(config: TrainConfig, n: int) -> int:
    """Return the number of steps of a training.

    Args:
        config: The configuration.
        n: The number of training images. The configuration may use only the first `train_size` of them.

    Raises:
        WorkbenchError: If a batch is larger than the number of images.
    """
    n = min(n, config.train_size or n)
    if config.batch_size > n:
        raise WorkbenchError(
            f"`batch_size` must be at most the number of training images (={n}), got {config.batch_size}. "
            "Use a smaller batch or more images."
        )
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None  # exactly one of both is set
    return max(1, int(config.epochs * n / config.batch_size + 1e-9))


def pick_device(name: str) -> torch.device:
    """Return the device of a name.

    Args:
        name: auto, cpu, cuda, cuda:N or mps. auto is the first GPU if there is one, else mps, else the CPU.

    Raises:
        WorkbenchError: For an unknown name, and for a device that this machine lacks.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorkbenchError(f"`device` must be auto, cpu, cuda, cuda:N or mps, got {name}.") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        device.type, 0
    )
    if (device.index or 0) >= available:
        raise WorkbenchError(
            f"`device` (={name}) is not on this machine, which has {available} of type {device.type}. Use device=auto."
        )
    return device


def settle_layout(model: nn.Module, config: TrainConfig, example: Tensor | None) -> str:
    """Arrange the weights and the images of a network as the configuration says, and return the layout.

    Args:
        model: The network, on its device.
        config: The configuration. "auto" chooses the faster layout in which a user's network runs.
        example: An input of a user's network.
    """
    device = next(model.parameters()).device
    layout = faster(device, half=config.precision != "float32") if config.layout == AUTO else config.layout
    if is_library(config.model) or config.layout != AUTO:
        arrange(model, layout)
        return layout
    return arrange_if_it_runs(model, layout, None if example is None else example.to(device))
