"""Networks from a file of weights: those of the library, of a user, and those that `normfree` made of either."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError
from workbench.networks import build_network, is_library, is_user_network, located, network_info, source_of
from workbench.user_errors import description, place_of
from workbench.weights.checkpoints import load_checkpoint, load_into
from workbench.weights.reading import Weights, read_weights
from workbench.weights.released import find


def network_of(source: str | Path, name: str | None = None) -> tuple[str, nn.Module, Tensor | None]:
    """Build the network that weights belong to, and load them.

    Args:
        source: A file of weights, or the name of a released model.
        name: Its name. None: as the file says, which a file may not for a user's code, because the code must run.

    Returns:
        The name, the network, and black images of its size (2, C, H, W). None instead of images for a network of the
        library, which takes any size.

    Raises:
        WorkbenchError: If the file is of another network, or of a user's network and no name is given.
    """
    weights = read_weights(find(source))
    recorded = (weights.recipe or {}).get("name")
    if name is None and is_user_network(recorded or ""):
        raise WorkbenchError(
            f"{source} holds the weights of {recorded}, and that code must run to build the network. If you trust it, "
            f"add --model {recorded}."
        )
    if is_library(name or recorded or ""):
        model = load_checkpoint(source)
        if name not in (None, model.recipe["name"]):
            raise WorkbenchError(f"{source} holds the weights of {model.recipe['name']}, not of {name}.")
        return model.recipe["name"], model, None
    name = located(name or recorded)
    preprocess = preprocess_of(name, weights)
    example = torch.zeros(2, preprocess.channels, preprocess.height, preprocess.width)
    return name, network_with(name, weights, preprocess, None), example


def preprocess_of(model_name: str, weights: Weights) -> Preprocess:
    """Return how the file says that its images are made, else as the network's released weights need them."""
    if weights.preprocess is not None:
        return Preprocess.from_dict(weights.preprocess, str(weights.file))
    info = network_info(model_name)
    return Preprocess(info.eval_style, info.test_size, info.test_size)


def network_with(name: str, weights: Weights, preprocess: Preprocess, classes: int | None) -> nn.Module:
    """Build the network of this name as the file describes it, and load its weights.

    The recipe of another network is ignored: `load_into` then reports the right name.

    Args:
        name: A located name.
        weights: The file.
        preprocess: How its images are made.
        classes: The number of outputs, if the file does not have it. None: the network's default.
    """
    recipe = weights.recipe or {}
    if recipe and _is_same(name, recipe["name"]):
        recipe = {**recipe, "name": name}  # the user's file may have moved
        weights = replace(weights, recipe=recipe)
        if recipe.get("source") not in (None, source_of(name)):
            raise WorkbenchError(
                f"{name} has changed since it was trained: its hash was {recipe['source']} and is now "
                f"{source_of(name)}. Evaluate {weights.file} with the code of that time."
            )
    else:
        recipe = {}
    in_file, channels, _ = weights.shape()
    if is_library(name):
        sizes = {"num_classes": recipe.get("num_classes", in_file), "in_channels": recipe.get("in_channels", channels)}
    else:  # a user's network may have any attribute `num_classes`, which the recipe then holds
        num_classes = len(preprocess.classes) or recipe.get("num_classes") or classes
        sizes = {"num_classes": num_classes, "in_channels": recipe.get("in_channels", preprocess.channels)}
    if sizes["in_channels"] != preprocess.channels:
        raise WorkbenchError(
            f"{weights.file} is for images with {sizes['in_channels']} channels, but its test images have "
            f"{preprocess.channels}. Use weights that a training on such images saved."
        )
    model = build_network(**{**recipe, "name": name, **sizes})
    load_into(model, weights)
    return model


@torch.inference_mode()
def outputs_of(model: nn.Module, name: str, preprocess: Preprocess) -> int:
    """Run a user's network on one black image, and return the number of its outputs."""
    shape = (1, preprocess.channels, preprocess.height, preprocess.width)
    try:
        return model.eval()(torch.zeros(shape)).shape[1]
    except Exception as error:  # a user's code can raise anything
        raise WorkbenchError(
            f"{name} must return (N, classes) for images (N, C, H, W) of {shape}, but failed ({description(error)})"
            f"{place_of(error)}. Leave out `image_size`, or set the size that it was made for."
        ) from error


def _is_same(name: str, recorded: str) -> bool:
    """Return whether two names stand for one network: equal, or one user's file in two folders."""
    last = lambda text: (text.startswith("normfree:"), text.rpartition("/")[2].removeprefix("normfree:"))
    return name == recorded or (is_user_network(name) and last(name) == last(recorded))
