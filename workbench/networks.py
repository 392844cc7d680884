"""The one way from a name to a network.

| name | network |
|---|---|
| `nf_resnet50` | one of this library |
| `my_net.py:build`, `package.module:build` | what a user's function returns, or a network that the module holds |
| `normfree:` before either | the same without BatchNorm, see `workbench.normfree` |

A training names its network, so that a worker or another machine can build it, and so that its result is recognised.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from workbench import user_code
from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.zoo import entry
from workbench.normfree import example_input, normfree
from workbench.source import source_hash

NORMFREE = "normfree:"
NORMFREE_PIXELS = 64  # a side, of the images on which `normfree` runs a network where no size is given
SIZES = {  # what others call them
    "num_classes": ("num_classes", "classes", "n_classes"),
    "in_channels": ("in_channels", "in_chans", "channels"),
}


@dataclass(frozen=True)
class NetworkInfo:
    """What is known of a network by its name alone: `norm` is "none", "batch" or another; sizes are pixels a side."""

    norm: str
    train_size: int
    test_size: int
    eval_style: str


def is_library(name: str) -> bool:
    """Whether a name stands for a network exactly as this library has it."""
    return ":" not in name


def is_user_network(name: str) -> bool:
    """Whether building the network runs a user's code."""
    return user_code.is_user_code(name.removeprefix(NORMFREE))


def check_name(name: str) -> None:
    """Refuse a name that cannot stand for a network. Reads no file and runs no code.

    Raises:
        WorkbenchError: For an unknown network of the library, with the nearest one, and for a malformed name.
    """
    inner = name.removeprefix(NORMFREE)
    if is_user_network(name) or inner.endswith(".py"):
        user_code.check_form(inner)
    else:
        entry(inner)


def located(name: str) -> str:
    """The name by which the network is the same from every folder.

    Raises:
        WorkbenchError: If a user's file is missing.
    """
    check_name(name)
    prefix = NORMFREE if name.startswith(NORMFREE) else ""
    return prefix + user_code.located(name.removeprefix(NORMFREE))


def source_of(name: str) -> str:
    """The hash of a user's code, see `user_code.source_hash_of`; empty for a network of the library."""
    return user_code.source_hash_of(user_code.located(name.removeprefix(NORMFREE))) if is_user_network(name) else ""


def builder_hash(name: str) -> str:
    """The hash of what, next to the models themselves, turns a name into a network; empty for the library's own."""
    return "" if is_library(name) else source_hash("normfree", "networks.py", "user_code.py")


def network_info(name: str) -> NetworkInfo:
    """What a name says of its network. Nothing is built.

    Raises:
        WorkbenchError: For an unknown network of the library, with the nearest one.
    """
    norm = "none" if name.startswith(NORMFREE) else "batch"
    if is_user_network(name):
        return NetworkInfo(norm, 32, 32, "whole")
    row = entry(name.removeprefix(NORMFREE))
    norm = row.build.func.norm if is_library(name) else norm
    return NetworkInfo(norm, row.train_size, row.test_size, row.eval_style)


def build_network(name: str, num_classes: int | None = None, in_channels: int | None = None, **arguments) -> nn.Module:
    """Build the network that a name stands for.

    A user's function runs once. It gets the numbers of classes and channels if it has parameters for them. On
    torch.device("meta") a user's network, and what `normfree` makes, is built on the CPU all the same.

    Args:
        name: See the table above.
        num_classes: None leaves it to the network: 1000 for those of the library.
        in_channels: Channels of the images; None leaves it to the network.
        **arguments: Those of `create_model`, or of the user's function, which may also be given as a dictionary
            `arguments`. `normfree:` takes `skip_gain` and `image_size` (pixels a side of the images on which it runs
            the network). `source`, the hash of a user's code, must be today's.

    Returns:
        The network. Its `recipe` says how it was built.

    Raises:
        WorkbenchError: For a name, file, module or function that does not exist, with the nearest name; for
            arguments that the function does not take; for code that breaks, or returns no nn.Module.
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
    wanted = {"blocks": ()} | ({} if num_classes is None else {"num_classes": num_classes})
    for attribute, value in wanted.items():  # what a training asks of ours
        if not hasattr(model, attribute):
            setattr(model, attribute, value)
    model.recipe = recipe
    return model


def _user_network(
    name: str, sizes: dict[str, int], *, source: str | None = None, arguments: dict | None = None, **more
) -> nn.Module:
    place = user_code.located(name)
    if source is not None and source != (now := user_code.source_hash_of(place)):
        raise WorkbenchError(
            f"{name} has changed: `source` (={source}) is now {now}. Take it out of `model_args` to train the network "
            "as it is."
        )
    with user_code.loaded(place) as function:
        arguments = {**_sizes_taken(function, sizes), **(arguments or {}), **more}
        if isinstance(function, nn.Module) and not arguments:
            return copy.deepcopy(function)  # a module that is imported once keeps it
        try:
            model = function(**arguments)
        except TypeError as error:
            raise WorkbenchError(f"{name} cannot be called with {arguments or 'no arguments'} ({error}).") from error
        except Exception as error:  # whatever a user's function does
            raise WorkbenchError(f"{name} broke off ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise WorkbenchError(f"{name} must return an nn.Module, not {type(model).__name__}.")
    return model


def sizes_taken(name: str, num_classes: int, in_channels: int) -> dict[str, int]:
    """The numbers of classes and channels under the names that a user's function has for them. Runs the code."""
    with user_code.loaded(user_code.located(name.removeprefix(NORMFREE))) as function:
        return _sizes_taken(function, {"num_classes": num_classes, "in_channels": in_channels})


def _sizes_taken(function: Callable, sizes: dict[str, int]) -> dict[str, int]:
    if isinstance(function, nn.Module):
        return {}
    takes = inspect.signature(function).parameters
    words = {size: next((word for word in SIZES[size] if word in takes), None) for size in sizes}
    return {word: sizes[size] for size, word in words.items() if word is not None}
