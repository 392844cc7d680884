"""Check of users' networks before anything trains: each must take images and give one number per class."""

import json
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from workbench.data import Dataset
from workbench.data.folders import ImageFolder
from workbench.errors import WorkbenchError
from workbench.networks import NORMFREE, is_user_network, network_info, source_of
from workbench.training.config import TrainConfig
from workbench.training.distributed import World
from workbench.training.gradients import Gradients
from workbench.training.inputs import Part, source
from workbench.training.precision import Bfloat16Copies
from workbench.training.setup import initial_model, pick_device
from workbench.user_code import located, running

# Fields that decide whether a network runs. Of configurations that agree in them one is enough.
DECISIVE = ("model", "model_args", "weights", "data", "image_size", "stream", "precision", "recompute", "device")


def check_networks(configs: Iterable[TrainConfig]) -> None:
    """Run two images forward and backward through each user's network, as a training does.

    The images are random, and of the size and kind of the training's. Networks of the library need no such check.

    Args:
        configs: The trainings. Each network is checked once.

    Raises:
        WorkbenchError: If a network cannot be built, fails, or returns anything else than logits (N, classes). The
            message has the file and the line of an error.
    """
    networks = {}
    for config in configs:
        if is_user_network(config.model):
            key = [*(getattr(config, name) for name in DECISIVE), source_of(config.model)]
            networks.setdefault(json.dumps(key), config)
    for config in networks.values():
        _check_network(config, source(config))


def _check_network(config: TrainConfig, data: Dataset | ImageFolder) -> None:
    name, device = config.model, World.from_environment().device(pick_device(config.device))
    place = located(name.removeprefix(NORMFREE))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = initial_model(config, data).to(device)
        x = torch.randn(2, data.channels, *_size(config, data), device=device)
        on = f"on images of shape {tuple(x.shape)}"
        with running(place, f"{name} does not run {on}"), torch.no_grad():
            out = model.eval()(x)
        shape = tuple(getattr(out, "shape", ()))
        if shape != (len(x), len(data.classes)):
            raise WorkbenchError(
                f"{name} returns {shape or type(out).__name__} for {len(x)} images, but {data.name} has "
                f"{len(data.classes)} classes. Let the function take `num_classes`, and return logits (N, num_classes)."
            )
        with running(place, f"{name} does not train {on}"):
            _backward(model.train(), config, x)
    if not hasattr(model.blocks, "__len__"):
        raise WorkbenchError(f"{name} has an attribute `blocks` without a length. Give it another name.")


def _size(config: TrainConfig, data: Dataset | ImageFolder) -> tuple[int, int]:
    """Return height and width of the training images, pixels."""
    if isinstance(data, Dataset):
        height, width = data.train.images.shape[2:]
        return height, width
    side = config.image_size or network_info(config.model).train_size
    return side, side


def _backward(model: nn.Module, config: TrainConfig, x: Tensor) -> None:
    net = Bfloat16Copies(model) if config.precision == "bfloat16_copies" else model
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    whole = config.replace(sam_rho=None)  # SAM's first step takes a fifth of a batch, and two images have none
    Gradients(model, net, whole, World(), x.device)([Part(lambda: (x, labels), share=1.0, last=True, seed=0)])
