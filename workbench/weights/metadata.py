"""The metadata of our files of weights, checked before anything is built from them."""

from pathlib import Path
from typing import Any

import torch

from workbench.bounded_json import parse
from workbench.data.pixels import Preprocess
from workbench.errors import WorkbenchError, shown
from workbench.models import zoo
from workbench.user_code import is_user_code

SIZE, DEPTH = 1 << 16, 8  # bounds of a recipe: characters, nesting
NAMES = 1 << 22  # characters of the preprocessing, with the names of all classes
ENTRIES = 64  # of a list among a network's arguments
LARGEST = 2**31  # no side of a tensor is larger


def read_metadata(metadata: dict[str, str], file: Path) -> tuple[dict | None, dict | None]:
    """Return the recipe of the network and the preprocessing of its images, either of which may be None.

    Raises:
        WorkbenchError: If one of them breaks its rules, or this version knows no such network.
    """
    try:
        recipe = parse(metadata.get("recipe", ""), size=SIZE, depth=DEPTH)
        if recipe is not None:
            _check_recipe(recipe)
    except WorkbenchError as error:
        raise WorkbenchError(
            f"{file} names no network that this version knows ({error}). Pass a model: load_checkpoint(file, model)."
        ) from error
    try:
        preprocess = parse(metadata.get("preprocess", "null"), size=NAMES, depth=DEPTH)
    except WorkbenchError as error:
        raise WorkbenchError(f"{file} records no valid preprocessing ({error}). Save the network again.") from error
    check_preprocess(preprocess, str(file))
    return recipe, preprocess


def check_preprocess(value: Any, where: str) -> None:
    """Check how the images of a network are made.

    Args:
        value: The values of `Preprocess.to_dict`, or None.
        where: Where they come from, for the error.

    Raises:
        WorkbenchError: For a value that is neither None nor complete and valid.
    """
    if value is not None:
        Preprocess.from_dict(value, where)


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, dict) or not isinstance(recipe.get("name"), str):
        raise WorkbenchError(f"the recipe must be an object with the name of a network, got {shown(recipe, 80)}")
    if len(recipe["name"]) > 1000:
        raise WorkbenchError(f"the name of a network must have at most 1000 characters, got {recipe['name'][:40]}...")
    for key in ("num_classes", "in_channels"):
        value = recipe.get(key, 1)
        if type(value) is not int or not 0 <= value < LARGEST:
            raise WorkbenchError(f"`{key}` must be a whole number from 0 to {LARGEST - 1}, got {shown(value, 80)}")
    if is_user_code(recipe["name"]):  # a file must not make us import code
        return
    for key, value in recipe.items():
        if isinstance(value, list) and len(value) > ENTRIES:
            raise WorkbenchError(f"`{key}` must have at most {ENTRIES} entries, got {len(value)}")
    try:
        with torch.device("meta"):
            zoo.create_model(**recipe)  # raises if this version does not know the name or the arguments
    except WorkbenchError as error:
        raise WorkbenchError(str(error)[:400].rstrip(".")) from error
    except (RuntimeError, OverflowError, MemoryError, ValueError, TypeError) as error:  # sizes that no tensor has
        raise WorkbenchError(f"no network has the sizes of {shown(recipe, 200)}") from error
