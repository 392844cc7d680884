"""A user's own network as a model by name: `my_net.py:build`, and `normfree:my_net.py:build` without its BatchNorm.

A training names its network, so that it can be repeated, found again and run by a worker or on another machine; all
that takes a model's name takes these: a configuration, a search, a recipe, a plan. The code is part of the name: the
argument `source`, which a configuration fills in.
"""

import inspect
from functools import partial

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models.normfree import normfree
from workbench.models.own.modules import absolute, function_of, importable, imported, located, named_in, source_hash_of

NORMFREE = "normfree:"
SIZES = {  # what others call them
    "num_classes": ("num_classes", "classes", "n_classes"),
    "in_channels": ("in_channels", "in_chans", "channels"),
}


def is_own(name: str) -> bool:
    """Does this name a user's network, not one of the library's?"""
    return ":" in name


def named(name: str) -> str:
    """A user's network by the name that means the same from every folder; a name of the library as it is.

    Raises: WorkbenchError for a file that is not there.
    """
    if not is_own(name):
        return name
    prefix = NORMFREE if name.startswith(NORMFREE) else ""
    return prefix + located(name.removeprefix(NORMFREE))


def source_of(name: str) -> str:
    """Names the code of a user's network (see `source_hash_of`); empty for one of the library."""
    return source_hash_of(located(name.removeprefix(NORMFREE))) if is_own(name) else ""


def own_build(name: str) -> partial:
    """What builds the network of this name, called as those of the zoo are. Nothing is imported until it is called."""
    kind = OwnNormFree if name.startswith(NORMFREE) else Own
    return partial(kind(name.removeprefix(NORMFREE)), depth=())


def call(name: str, **arguments) -> nn.Module:
    """Calls the function of this name, or takes the network that it names.

    Raises: WorkbenchError for a file, module or function that is not there, for a function that does not take the
    arguments, and for what is no module.
    """
    where, _, function = name.rpartition(":")
    build = named_in(imported(where), where, function)
    if isinstance(build, nn.Module) and not arguments:
        return build
    try:
        model = build(**arguments)
    except TypeError as error:
        raise WorkbenchError(f"{name} cannot be called with {arguments or 'no arguments'} ({error}).") from error
    except Exception as error:  # whatever a user's function does
        raise WorkbenchError(f"{name} broke off ({type(error).__name__}: {error}).") from error
    if not isinstance(model, nn.Module):
        raise WorkbenchError(f"{name} must return an nn.Module, not {type(model).__name__}.")
    return model


def sizes_taken(name: str, num_classes: int, in_channels: int) -> dict[str, int]:
    """The numbers of classes and channels under the names that the user's function has for them."""
    takes = inspect.signature(function_of(name)).parameters
    wanted = {"num_classes": num_classes, "in_channels": in_channels}
    found = {size: next((word for word in words if word in takes), None) for size, words in SIZES.items()}
    return {word: wanted[size] for size, word in found.items() if word is not None}


class Own:
    """Builds a user's network, as an entry of the zoo builds one of ours."""

    norm = "batch"

    def __init__(self, name: str):
        self.name = name

    def __call__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        depth: tuple = (),
        source: str | None = None,
        image_size: int | None = None,
        arguments: dict | None = None,
    ) -> nn.Module:
        """The network, on the CPU. Args: `arguments` of the user's function, which gets the numbers of classes and
        channels where it has arguments for them; `source`, if given, must be today's (see `source_of`)."""
        name = located(self.name)
        now = source_of(name)
        if source not in (None, now):
            raise WorkbenchError(
                f"{self.name} has changed: `source` (={source}) is now {now}. Take it out of `model_args` to train "
                "the network as it is."
            )
        sizes = sizes_taken(name, num_classes, in_channels)
        with torch.device("cpu"), importable(name):  # for shapes alone it is asked for on "meta"
            model = call(absolute(name), **sizes, **(arguments or {}))
        for attribute, value in (("num_classes", num_classes), ("blocks", ())):  # what a training asks of ours
            if not hasattr(model, attribute):
                setattr(model, attribute, value)
        return model


class OwnNormFree(Own):
    """Builds the normalizer-free version of a user's network."""

    norm = "none"

    def __call__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        depth: tuple = (),
        source: str | None = None,
        image_size: int | None = None,
        arguments: dict | None = None,
        skip_gain: float = 0.0,
    ) -> nn.Module:
        """As `Own`, then `normfree`, on images of `image_size` pixels a side (None: 64)."""
        model = super().__call__(num_classes, in_channels, source=source, arguments=arguments)
        size = image_size or 64
        with torch.device("cpu"):
            return normfree(model, torch.zeros(2, in_channels, size, size), skip_gain=skip_gain).model
