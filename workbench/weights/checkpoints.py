"""Reads and writes weights: the authors' released files, timm's, and those of this library.

`load_checkpoint("nfnet_f0")` fetches a released file. `load_checkpoint("weights.safetensors")` reads a file and
identifies its network. Nothing in a file is executed. This library writes safetensors that name their network and its
constants. No parameter holds alpha, beta or gamma, so wrong constants would otherwise load without an error.
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
from workbench.models.network import Network
from workbench.optim.names import unwrapped
from workbench.user_code import is_user_code
from workbench.weights.haiku import to_haiku
from workbench.weights.identify import constants, differences, identify, recipe_of
from workbench.weights.input_channels import adapt_in_channels
from workbench.weights.metadata import check_preprocess
from workbench.weights.prefixes import stored_names
from workbench.weights.reading import FORMAT, Weights, read_weights
from workbench.weights.released import find
from workbench.weights.strict import check_fits, complaints, load_strictly
from workbench.weights.timm_layout import to_timm

PREPROCESS = "image_preprocess"  # attribute of a network: how its file says that test images are made


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
    """Load weights from a file, or from a name of `RELEASED`.

    Nothing in the file is executed.

    Args:
        source: A path (.npz as released, .safetensors, .pth, .pt or .bin), or the name of a model, whose released file
            is fetched once.
        model: Load into this network, strictly. None: build the network that the weights belong to.
        num_classes: If the file has another number, draw a new classifier. 0: no classifier.
        in_channels: If the file has another number, adapt the first convolution (see `adapt_in_channels`).
        verify: Check the hash of a file that has a released file's name.
        progress: Show a progress bar while downloading.
        overrides: Arguments of `create_model`, such as dropout=0.25.

    Returns:
        The network with the weights: `model`, if you passed one.

    Raises:
        WorkbenchError: If the file is missing, damaged or hostile, or belongs to another network, which the message
            names.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise WorkbenchError(f"`model` must be a network or None, got {model!r}. With None the right network is built.")
    if model is not None and (num_classes is not None or in_channels is not None or overrides):
        raise WorkbenchError(
            "`model` cannot be combined with `num_classes`, `in_channels` or overrides. "
            "Pass a network or the arguments to build one, not both."
        )
    weights = read_weights(find(source, verify=verify, progress=progress))
    if model is not None:
        load_into(model, weights)
        return model
    built = build(weights, **overrides)
    if num_classes is not None and num_classes != built.num_classes:
        built.reset_classifier(num_classes)
    if in_channels is not None:
        adapt_in_channels(built, in_channels)
    return built


def save_checkpoint(model: nn.Module, file: str | Path, preprocess: dict | None = None) -> Path:
    """Write a model as safetensors that name it, so that `load_checkpoint(file)` can build it.

    If the activation of the model is a function, the file cannot name it. Load such a file with
    `load_checkpoint(file, model)`.

    Args:
        model: A model made by `create_model`, also within torch.compile or DistributedDataParallel.
        file: Path that ends in .safetensors.
        preprocess: How its images are made and what its outputs stand for, for `evaluate`: what
            `workbench.data.pixels.Preprocess.to_dict` returns. None: as the file says that the model was loaded from,
            else as for ImageNet.

    Returns:
        The path of the file.

    Raises:
        WorkbenchError: If `create_model` did not make the model, or it was changed since, such as folded. Save its
            state_dict() instead, or export it.
    """
    file = target_path(file, (".safetensors",))
    model = unwrapped(model)
    preprocess = getattr(model, PREPROCESS, None) if preprocess is None else preprocess
    check_preprocess(preprocess, "`preprocess`")
    tensors = model.state_dict()
    names = stored_names(tensors)
    state = {names[name]: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    recipe = recipe_of(model)
    if recipe is not None and is_user_code(recipe["name"]):
        faults = []  # its code would have to run to compare
    elif recipe is not None:
        with torch.device("meta"):
            faults = complaints(zoo.create_model(**recipe), state, {})
    elif getattr(model, "recipe", None) is None:
        faults = ["create_model did not make it"]
    else:
        faults = []
    if faults:
        raise WorkbenchError(
            f"A file cannot name this {type(model).__name__} ({faults[0]}). Save the network itself, not a "
            "folded one, or save its state_dict() with torch.save."
        )
    metadata = {"format": FORMAT, "recipe": json.dumps(recipe), "preprocess": json.dumps(preprocess)}
    return write_whole(file, lambda part: save_file(state, part, metadata))


def convert(source: str | Path, target: str | Path, *, layout: str = "workbench", verify: bool = True) -> Network:
    """Read a file of weights and write it in another layout.

    Only .safetensors files in the layout "workbench" can store constants that differ from the model's defaults.

    Args:
        source: A path, or the name of a model with released weights.
        target: Path that ends in .safetensors, .pth, or .npz, which always has the released layout.
        layout: "workbench" or "timm".
        verify: Check the hash of a file that has a released file's name.

    Returns:
        The network that the weights belong to.

    Raises:
        WorkbenchError: If `source` cannot be read or identified, or `target` cannot store it.
    """
    target = target_path(target, (".safetensors", ".pth", ".npz"))
    if layout not in ("workbench", "timm"):
        raise unknown("layout", layout, ["workbench", "timm"])
    if target.suffix == ".npz" and layout == "timm":
        raise WorkbenchError(
            f"{target} cannot have the layout 'timm', because .npz files have the released layout. "
            "Use .safetensors or .pth."
        )
    weights = read_weights(find(source, verify=verify))
    model = build(weights)
    if target.suffix == ".safetensors" and layout == "workbench":
        save_checkpoint(model, target, weights.preprocess)
        return model
    special = constants(model.recipe)
    if special:
        shown = ", ".join(f"{key}={value!r}" for key, value in special.items())
        raise WorkbenchError(
            f"{source} is a {model.recipe['name']} with {shown}, which a {target.suffix} file in this layout cannot "
            "store. Convert it to .safetensors with the layout 'workbench'."
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


def build(weights: Weights, **overrides) -> Network:
    """Build the network that the weights belong to, and load them."""
    arguments = {**identify(weights), **overrides}
    with torch.device("meta"):  # sizes that the file does not have need no memory
        model = zoo.create_model(**arguments)
    check_fits(model, *weights.state_for(model))
    model = zoo.create_model(**arguments)
    load_strictly(model, *weights.state_for(model))
    setattr(model, PREPROCESS, weights.preprocess)
    return model


def load_into(model: nn.Module, weights: Weights) -> None:
    """Load weights into `model`, strictly.

    Raises:
        WorkbenchError: If they do not fit. The message names the network that they belong to.
    """
    model = unwrapped(model)
    try:
        state, labels = weights.state_for(model)
        faults = complaints(model, state, labels)
    except WorkbenchError as error:
        faults = [str(error)]
    recipe = recipe_of(model)
    if not faults and weights.recipe and recipe:
        faults = differences(recipe, weights.recipe)
    if not faults:
        load_strictly(model, state, labels)
        setattr(model, PREPROCESS, weights.preprocess)
        return
    name = recipe["name"] if recipe else type(model).__name__
    try:
        right = identify(weights)
    except WorkbenchError:
        raise WorkbenchError(f"{weights.file} does not fit {name}: {'; '.join(faults)}.") from None
    arguments = ", ".join(f"{key}={value!r}" for key, value in right.items() if key != "name")
    raise WorkbenchError(
        f"{weights.file} belongs to create_model({right['name']!r}, {arguments}), not to {name}: {faults[0]}."
    )
