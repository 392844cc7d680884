"""Identifies the network that weights belong to."""

import inspect
import json
from collections.abc import Iterable

import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import zoo
from workbench.user_code import is_user_code
from workbench.weights.reading import Weights
from workbench.weights.strict import complaints
from workbench.weights.timm_layout import IN_TIMM

# Arguments that change how a network trains, but not what it computes from given weights.
_TRAINING_ONLY = {"dropout", "stochastic_depth", "skip_gain", "he_init"}


def identify(weights: Weights) -> dict:
    """Find the network that weights fit.

    Returns:
        The recipe, {"name": ..., "num_classes": ..., "in_channels": ...}.

    Raises:
        WorkbenchError: If no network fits. The message names the nearest one and its differences.
    """
    if weights.recipe:
        if is_user_code(weights.recipe["name"]):
            raise WorkbenchError(
                f"{weights.file} is for {weights.recipe['name']}, which is not a network of this library. "
                "Build it and call load_checkpoint(file, model)."
            )
        return weights.recipe
    if weights.named:
        raise WorkbenchError(
            f"{weights.file} is for a network whose activation is a function, which a file cannot name. "
            "Build that network and call load_checkpoint(file, model)."
        )
    num_classes, in_channels, blocks = weights.shape()
    nearest: tuple[int, str, list[str]] | None = None
    for name in _candidates(weights, blocks):
        with torch.device("meta"):
            model = zoo.create_model(name, num_classes, in_channels=in_channels)
        try:
            faults = complaints(model, *weights.state_for(model))
        except WorkbenchError:  # a family without this layout
            continue
        if not faults:
            return {"name": name, "num_classes": num_classes, "in_channels": in_channels}
        if nearest is None or len(faults) < nearest[0]:
            nearest = (len(faults), name, faults)
    hint = f" The nearest is {nearest[1]}: {'; '.join(nearest[2])}." if nearest else ""
    raise WorkbenchError(f"{weights.file} fits no network of this library.{hint}")


def _candidates(weights: Weights, blocks: int) -> Iterable[str]:
    """Names of the networks with this number of blocks that can have the layout of the weights."""
    for name, row in zoo.MODELS.items():
        if weights.layout == "timm" and row.build.func not in IN_TIMM:
            continue
        if sum(row.build.keywords["depth"]) == blocks:
            yield name


def recipe_of(model: nn.Module) -> dict | None:
    """Return the arguments with which `create_model` builds this model again.

    Returns:
        None if `create_model` did not build it, or an argument cannot be stored as JSON.
    """
    recipe = getattr(model, "recipe", None)
    if recipe is None:
        return None
    if hasattr(model, "num_classes"):
        recipe = {**recipe, "num_classes": model.num_classes}
    try:
        return json.loads(json.dumps(recipe))
    except TypeError:  # a callable activation, say
        return None


def _defaults(name: str) -> dict:
    """Default arguments of the model of this name, as JSON stores them."""
    if is_user_code(name):
        return {}
    build = zoo.entry(name).build
    defaults = {k: p.default for k, p in inspect.signature(build.func).parameters.items()} | build.keywords
    return json.loads(json.dumps(defaults, default=str))


def constants(recipe: dict) -> dict:
    """Return the arguments of a recipe that change what its network computes.

    Arguments that equal the defaults of its name are left out.
    """
    keys, defaults = set(recipe) - _TRAINING_ONLY - {"name", "num_classes", "in_channels"}, _defaults(recipe["name"])
    return {key: recipe[key] for key in sorted(keys) if recipe[key] != defaults.get(key)}


def differences(recipe: dict, stored: dict) -> list[str]:
    """List the constants in which a network and a file of equal shapes differ."""
    if recipe["name"] != stored["name"]:
        return [f"the network is {recipe['name']}, but the file has {stored['name']}"]
    defaults = _defaults(recipe["name"])
    ours, theirs = defaults | constants(recipe), defaults | constants(stored)
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    return [f"`{key}` of the network is {ours.get(key)}, but the file has {theirs.get(key)}" for key in keys]
