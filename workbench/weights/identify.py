"""Which network do these weights belong to?"""

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

# Arguments that change how a network trains, but not what it computes with given weights.
_TRAINING_ONLY = {"dropout", "stochastic_depth", "skip_gain", "he_init"}


def identify(weights: Weights) -> dict:
    """The recipe, {"name": ..., "num_classes": ..., "in_channels": ...}, of the network that these weights fit.

    Raises: WorkbenchError where there is none, saying how far the nearest is off.
    """
    if weights.recipe:
        if is_user_code(weights.recipe["name"]):
            raise WorkbenchError(
                f"{weights.file} is of {weights.recipe['name']}, which is no network of this library: build that and "
                "give it, load_checkpoint(file, model)."
            )
        return weights.recipe
    if weights.named:
        raise WorkbenchError(
            f"{weights.file} holds a network with a function of its own for an activation, which a file cannot say: "
            "make that network and give it, load_checkpoint(file, model)."
        )
    num_classes, in_channels, blocks = weights.shape()
    nearest: tuple[int, str, list[str]] | None = None
    for name in _candidates(weights, blocks):
        with torch.device("meta"):
            model = zoo.create_model(name, num_classes, in_channels=in_channels)
        try:
            faults = complaints(model, *weights.state_for(model))
        except WorkbenchError:  # another family
            continue
        if not faults:
            return {"name": name, "num_classes": num_classes, "in_channels": in_channels}
        if nearest is None or len(faults) < nearest[0]:
            nearest = (len(faults), name, faults)
    hint = f" The nearest is {nearest[1]}: {'; '.join(nearest[2])}." if nearest else ""
    raise WorkbenchError(f"{weights.file} fits no network of this library.{hint}")


def _candidates(weights: Weights, blocks: int) -> Iterable[str]:
    """Names of networks with so many blocks; timm's layout is that of our NFNets and of timm's own."""
    for name, row in zoo.MODELS.items():
        if weights.layout == "timm" and row.build.func not in IN_TIMM:
            continue
        if sum(row.build.keywords["depth"]) == blocks:
            yield name


def recipe_of(model: nn.Module) -> dict | None:
    """What `create_model` needs to build this model again; None where it was built otherwise, or cannot be said."""
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
    """The arguments that a name stands for, as JSON has them."""
    if is_user_code(name):
        return {}
    made = zoo.entry(name).build
    defaults = {k: p.default for k, p in inspect.signature(made.func).parameters.items()} | made.keywords
    return json.loads(json.dumps(defaults, default=str))


def constants(recipe: dict) -> dict:
    """What in a recipe changes the function that its name stands for; a default that was said is a default."""
    asked, defaults = set(recipe) - _TRAINING_ONLY - {"name", "num_classes", "in_channels"}, _defaults(recipe["name"])
    return {key: recipe[key] for key in sorted(asked) if recipe[key] != defaults.get(key)}


def differences(asked: dict, stored: dict) -> list[str]:
    """Constants in which two networks of equal shapes differ."""
    if asked["name"] != stored["name"]:
        return [f"it is {asked['name']} here and {stored['name']} in the file"]
    defaults = _defaults(asked["name"])
    ours, theirs = defaults | constants(asked), defaults | constants(stored)
    keys = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    return [f"`{key}` is {ours.get(key)} here and {theirs.get(key)} in the file" for key in keys]
