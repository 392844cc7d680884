"""What a training starts from: its network, its groups of parameters, its length, its device and layout."""

import torch
from torch import nn

from workbench.data import Dataset
from workbench.data.folders import ImageFolder
from workbench.errors import WorkbenchError
from workbench.networks import NORMFREE, build_network
from workbench.optim import param_groups
from workbench.optim.groups import classifier_weight
from workbench.training.config import TrainConfig
from workbench.weights.checkpoints import load_checkpoint


def initial_model(config: TrainConfig, data: Dataset | ImageFolder) -> nn.Module:
    """The network that a training starts from: drawn, or with the weights that it names; where those have another
    number of classes, the classifier is drawn.

    Raises: WorkbenchError for weights of another network.
    """
    if config.weights is None:
        arguments = config.model_args
        if config.model.startswith(NORMFREE):  # it runs the network once, on images of this size
            arguments = {"image_size": _pixels(config, data), **arguments}
        return build_network(config.model, len(data.classes), data.channels, **arguments)
    shape = {"num_classes": len(data.classes), "in_channels": data.channels}
    model = load_checkpoint(config.weights, progress=config.progress, **shape, **config.model_args)
    if model.recipe["name"] != config.model:
        raise WorkbenchError(
            f"`weights` (={config.weights}) are of {model.recipe['name']}, but `model` is {config.model}: set one to "
            "fit the other."
        )
    return model


def _pixels(config: TrainConfig, data: Dataset | ImageFolder) -> int | None:
    """Pixels a side of the images; None where they are streamed and the configuration leaves the size open."""
    return data.train.images.shape[-1] if isinstance(data, Dataset) else config.image_size


def groups_of(model: nn.Module, config: TrainConfig) -> list[dict]:
    """Who is decayed and who is clipped in this training."""
    overrides = {pattern: {"clip": None} for pattern in config.clip_exempt}
    if config.clip_head:
        overrides[classifier_weight(model)] = {"clip": config.clip}
    return param_groups(model, config.weight_decay, config.clip, overrides)


def steps_of(config: TrainConfig, n: int) -> int:
    """How many steps `config` takes on `n` training images, of which it may take only the first `train_size`."""
    n = min(n, config.train_size or n)
    if config.batch_size > n:
        raise WorkbenchError(
            f"`batch_size` (={config.batch_size}) must be at most the number of training images (={n})."
        )
    return config.steps or max(1, int(config.epochs * n / config.batch_size + 1e-9))


def pick_device(name: str) -> torch.device:
    """`auto` is the first GPU where there is one; a device that is not there is refused."""
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorkbenchError(f"`device` (={name}) must be auto, cpu, cuda, cuda:N or mps.") from error
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        device.type, 0
    )
    if (device.index or 0) >= available:
        raise WorkbenchError(
            f"`device` (={name}) is not on this machine, which has {available} of type {device.type}: use device=auto."
        )
    return device


def layout(precision: str, device: torch.device) -> torch.memory_format:
    """How a training's weights and maps lie in memory: channels last in bfloat16 on a GPU, whose tensor cores read them
    so; no result but its rounding depends on it."""
    tensor_cores = device.type == "cuda" and precision != "float32"
    return torch.channels_last if tensor_cores else torch.contiguous_format
