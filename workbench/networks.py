"""Build networks from names.

| name | network |
|---|---|
| `nf_resnet50` | a network of this library |
| `my_net.py:build`, `package.module:build` | what a user's function returns, or a network that the module holds |
| `normfree:` before either | the same network without BatchNorm, see `workbench.normfree` |

A training stores the name of its network. A worker or another machine can then build the network, and the store
recognises its results.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from workbench import user_code
from workbench.copies import copied
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.zoo import entry
from workbench.normfree import example_input, normfree
from workbench.source import source_hash

NORMFREE = "normfree:"
NORMFREE_PIXELS = 64  # height and width of the images on which `normfree` runs a network, unless a size is given
SIZES = {  # by parameter of ours, the names that users' functions have for it
    "num_classes": ("num_classes", "classes", "n_classes"),
    "in_channels": ("in_channels", "in_chans", "channels"),
}


@dataclass(frozen=True)
class NetworkInfo:
    """Properties of a network that follow from its name.

    Attributes:
        norm: Kind of normalization: "none", "batch" or another.
        train_size: Height and width of training images, pixels.
        test_size: Height and width of test images, pixels.
        eval_style: How test images are cut: "squash", "crop" or "whole", see `workbench.data.preprocess`.
    """

    norm: str
    train_size: int
    test_size: int
    eval_style: str


def is_library(name: str) -> bool:
    """Return whether a name stands for an unchanged network of this library."""
    return ":" not in name


def is_user_network(name: str) -> bool:
    """Return whether building the network runs a user's code."""
    return user_code.is_user_code(name.removeprefix(NORMFREE))


def check_name(name: str) -> None:
    """Check that a name can stand for a network. Read no file and run no code.

    Raises:
        WorkbenchError: If the name is malformed, or the library has no such network. The message suggests the nearest
            network.
    """
    inner = name.removeprefix(NORMFREE)
    if is_user_network(name) or inner.endswith(".py"):
        user_code.check_form(inner)
    else:
        entry(inner)


def located(name: str) -> str:
    """Return a name of the same network that works from every folder.

    Raises:
        WorkbenchError: If the name is malformed or unknown, or a user's file is missing.
    """
    check_name(name)
    prefix = NORMFREE if name.startswith(NORMFREE) else ""
    return prefix + user_code.located(name.removeprefix(NORMFREE))


def source_of(name: str) -> str:
    """Return the hash of a user's code, which is empty for a network of the library.

    See `user_code.source_hash_of`.
    """
    return user_code.source_hash_of(user_code.located(name.removeprefix(NORMFREE))) if is_user_network(name) else ""


def builder_hash(name: str) -> str:
    """Return the hash of the code that builds a network from a name.

    The hash does not cover the models. It is empty for a network of the library.
    """
    return "" if is_library(name) else source_hash("normfree", "networks.py", "user_code.py", "copies.py")


def network_info(name: str) -> NetworkInfo:
    """Return the properties that follow from a network's name. Build nothing.

    Raises:
        WorkbenchError: If the library has no such network. The message suggests the nearest one.
    """
    norm = "none" if name.startswith(NORMFREE) else "batch"
    if is_user_network(name):
        return NetworkInfo(norm, 32, 32, "whole")
    row = entry(name.removeprefix(NORMFREE))
    norm = row.build.func.norm if is_library(name) else norm
    return NetworkInfo(norm, row.train_size, row.test_size, row.eval_style)


def build_network(name: str, num_classes: int | None = None, in_channels: int | None = None, **arguments) -> nn.Module:
    """Build a network from its name.

    A user's function runs once. It gets the numbers of classes and channels if it has parameters for them. User
    networks and `normfree:` networks are built on the CPU, even within torch.device("meta").

    Args:
        name: A name as in the table at the top of this module.
        num_classes: Number of classes. None: the network's default, which is 1000 for those of the library.
        in_channels: Channels of the images. None: the network's default.
        **arguments: Arguments of `create_model`, or of the user's function. For a user's function you can also give
            them as a dictionary `arguments`. `normfree:` takes `skip_gain` and `image_size` (height and width of the
            images on which it runs the network, pixels). `source` is the hash of a user's code and must match the
            current code.

    Returns:
        The network. Its attribute `recipe` holds the name and the arguments.

    Raises:
        WorkbenchError: If the name, file, module or function does not exist, the function does not take the
            arguments, or the code fails or does not return an nn.Module. Also if the network uses the name `recipe`.
    """
    check_name(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    sizes = {size: value for size, value in sizes.items() if value is not None}
    if is_library(name):
        return create_model(name, **sizes, **arguments)
    recipe = {"name": name, **{size: value for size, value in sizes.items() if size != "num_classes"}, **arguments}
    image_size = arguments.pop("image_size", None)
    skip_gain = arguments.pop("skip_gain", 0.0) if name.startswith(NORMFREE) else None
    inner = name.removeprefix(NORMFREE)
    with torch.device("cpu"):
        model = (
            _user_network(inner, sizes, **arguments)
            if is_user_network(name)
            else create_model(inner, **sizes, **arguments)
        )
        if skip_gain is not None:
            images = example_input(model, image_size or NORMFREE_PIXELS, in_channels)
            model = normfree(model, images, skip_gain=skip_gain).model
    if not isinstance(getattr(model, "recipe", {}), dict):
        raise WorkbenchError(f"{name} has an attribute `recipe`, which would be replaced. Give it another name.")
    wanted = {"blocks": ()} | ({} if num_classes is None else {"num_classes": num_classes})
    for attribute, value in wanted.items():  # a training reads these from our networks
        if not hasattr(model, attribute):
            setattr(model, attribute, value)
    model.recipe = recipe  # pyright: ignore[reportArgumentType]  # nn.Module's stub allows only tensors and modules
    return model


def _user_network(
    name: str, sizes: dict[str, int], *, source: str | None = None, arguments: dict | None = None, **more
) -> nn.Module:
    place = user_code.located(name)
    if source is not None and source != (now := user_code.source_hash_of(place)):
        raise WorkbenchError(
            f"{name} has changed: `source` is {source}, but the hash of its code is now {now}. Remove `source` from "
            "`model_args` to train the network as it is."
        )
    with user_code.loaded(place) as function:
        arguments = {**_sizes_taken(function, sizes), **(arguments or {}), **more}
        if isinstance(function, nn.Module) and not arguments:
            return copied(function)  # Python imports a module once, so each build must get a new network
        with user_code.running(place, f"{name} failed, called with {arguments or 'no arguments'}"):
            model = function(**arguments)
    if not isinstance(model, nn.Module):
        raise WorkbenchError(f"{name} must return an nn.Module, not {type(model).__name__}. Check its return value.")
    return model


def sizes_taken(name: str, num_classes: int, in_channels: int) -> dict[str, int]:
    """Return the numbers of classes and channels as arguments of a user's function.

    This runs the user's code.

    Args:
        name: Name of a user's network.
        num_classes: Number of classes.
        in_channels: Channels of the images.

    Returns:
        By parameter of the function its value. Sizes that the function does not take are left out.
    """
    with user_code.loaded(user_code.located(name.removeprefix(NORMFREE))) as function:
        return _sizes_taken(function, {"num_classes": num_classes, "in_channels": in_channels})


def _sizes_taken(function: Callable, sizes: dict[str, int]) -> dict[str, int]:
    if isinstance(function, nn.Module):
        return {}
    try:
        takes = inspect.signature(function).parameters
    except (ValueError, TypeError):  # a function in C need not have a signature
        return {}
    words = {size: next((word for word in SIZES[size] if word in takes), None) for size in sizes}
    return {word: sizes[size] for size, word in words.items() if word is not None}
