"""Weights in and out: the authors' released files, timm's, and our own.

`load_checkpoint("nfnet_f0")` fetches and loads; `load_checkpoint("weights.safetensors")` reads a file and finds out
which network it belongs to. Nothing in a file is executed. Our own files are safetensors that name their network, its
constants included: alpha, beta and gamma are in no parameter, so wrong ones would load without a sound.
"""

import json
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from workbench.errors import WorkbenchError, unknown
from workbench.files import target_path, write_whole
from workbench.models import zoo
from workbench.user_code import is_user_code
from workbench.weights.haiku import to_haiku
from workbench.weights.identify import constants, differences, identify, recipe_of
from workbench.weights.input_channels import adapt_in_channels
from workbench.weights.reading import FORMAT, Weights, read_weights
from workbench.weights.released import find
from workbench.weights.strict import complaints, load_strictly
from workbench.weights.timm_layout import to_timm


def load_checkpoint(
    source: str | Path,
    model: nn.Module | None = None,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    verify: bool = True,
    progress: bool = True,
    **overrides,
) -> nn.Module:
    """A network with weights, from a file or from a name of `RELEASED`.

    Args: `source` a path (.npz as released, .safetensors, .pth), or a model's name, whose released file is then
    fetched once. `model`: load into this one, strictly; without it the right network is built. `num_classes`: another
    number than the file's gets a freshly drawn classifier (0: none). `in_channels`: another number adapts the first
    convolution (see `adapt_in_channels`). `verify=False` skips the hash of a file that has a released file's name.
    `overrides` go to `create_model` (dropout=0.25, ...).
    Raises: WorkbenchError for a file that is not there, is damaged or hostile, or belongs to another network, naming
    the right one. Nothing in the file is executed.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise WorkbenchError(f"`model` (={model!r}) must be a network, or None to have the right one built.")
    if model is not None and (num_classes is not None or in_channels is not None or overrides):
        raise WorkbenchError("give a model, or num_classes, in_channels and overrides to build one: not both.")
    weights = read_weights(find(source, verify=verify, progress=progress))
    if model is not None:
        load_into(model, weights)
        return model
    model = build(weights, **overrides)
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    if in_channels is not None:
        adapt_in_channels(model, in_channels)
    return model


def save_checkpoint(model: nn.Module, file: str | Path, preprocess: dict | None = None) -> Path:
    """Writes the model as safetensors that name it, so that `load_checkpoint(file)` needs nothing else.

    Args: `preprocess` says how its images are made, for `evaluate`: mean and std (a number a channel, in units of
    0..1), image_size, style (see workbench.data.preprocess). Without it they are ImageNet's.

    A model with a function for an activation cannot be named: its file loads into a model only,
    `load_checkpoint(file, model)`.
    Raises: WorkbenchError for a model that was not made by `create_model`, or was changed since (folded, wrapped): save
    its state_dict() instead, or export it.
    """
    file = target_path(file, (".safetensors",))
    recipe = recipe_of(model)
    if recipe is not None and is_user_code(recipe["name"]):
        faults = []  # its code would have to run to compare
    elif recipe is not None:
        with torch.device("meta"):
            faults = complaints(zoo.create_model(**recipe), model.state_dict(), {})
    elif getattr(model, "recipe", None) is None:
        faults = ["create_model did not make it"]
    else:
        faults = []
    if faults:
        raise WorkbenchError(
            f"this {type(model).__name__} cannot be named in a file ({faults[0]}): save the network itself, not a "
            "folded or wrapped one (compiled._orig_mod, ddp.module), or its state_dict() with torch.save."
        )
    metadata = {"format": FORMAT, "recipe": json.dumps(recipe), "preprocess": json.dumps(preprocess)}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_whole(file, lambda part: save_file(state, part, metadata))


def convert(source: str | Path, target: str | Path, *, layout: str = "workbench", verify: bool = True) -> nn.Module:
    """Reads any file of weights and writes it in another layout; returns the network that it belongs to.

    Args: `layout` of a .safetensors or .pth target: "workbench" or "timm"; a .npz target has the released layout. Only
    our .safetensors can say that a network has other constants than its name stands for.
    """
    target = target_path(target, (".safetensors", ".pth", ".npz"))
    if layout not in ("workbench", "timm"):
        raise unknown("layout", layout, ["workbench", "timm"])
    if target.suffix == ".npz" and layout == "timm":
        raise WorkbenchError("a .npz file has the released layout: for timm's, end the name in .safetensors or .pth.")
    weights = read_weights(find(source, verify=verify))
    model = build(weights)
    if target.suffix == ".safetensors" and layout == "workbench":
        save_checkpoint(model, target, weights.preprocess)
        return model
    special = constants(model.recipe)
    if special:
        shown = ", ".join(f"{key}={value!r}" for key, value in special.items())
        raise WorkbenchError(
            f"{source} is a {model.recipe['name']} with {shown}, which no {target.suffix} file can say: it would load "
            "as another function. Convert it to .safetensors."
        )
    if target.suffix == ".npz":
        tree = to_haiku(model)
        write_whole(target, lambda part: part.write_bytes(pickle.dumps(tree, protocol=4)))
    else:
        state = to_timm(model) if layout == "timm" else model.state_dict()
        write = torch.save if target.suffix == ".pth" else save_file
        write_whole(target, lambda part: write(state, part))
    return model


# ---- from arrays to a network


def build(weights: Weights, **overrides) -> nn.Module:
    """The network that these weights belong to, with them in it."""
    model = zoo.create_model(**{**identify(weights), **overrides})
    load_strictly(model, *weights.state_for(model))
    return model


def load_into(model: nn.Module, weights: Weights) -> None:
    """Loads strictly; weights of another network are refused by its name."""
    try:
        state, labels = weights.state_for(model)
        faults = complaints(model, state, labels)
    except WorkbenchError as error:
        faults = [str(error)]
    asked = recipe_of(model)
    if not faults and weights.recipe and asked:
        faults = differences(asked, weights.recipe)
    if not faults:
        return load_strictly(model, state, labels)
    name = asked["name"] if asked else type(model).__name__
    try:
        right = identify(weights)
    except WorkbenchError:
        raise WorkbenchError(f"{weights.file} does not fit {name}: {'; '.join(faults)}.") from None
    arguments = ", ".join(f"{key}={value!r}" for key, value in right.items() if key != "name")
    raise WorkbenchError(
        f"{weights.file} belongs to create_model({right['name']!r}, {arguments}), and does not fit {name}: {faults[0]}."
    )
