"""Recipes as text: presets, YAML files and NAME=VALUE pairs, to and from configurations."""

import dataclasses

from torch import nn

from workbench.errors import WorkbenchError, shown, unknown
from workbench.files import local_path
from workbench.lab.studies.plain_yaml import dump_yaml, load_yaml, read_yaml
from workbench.training import TrainConfig
from workbench.training.presets import changed, preset


def parse_config(texts: dict[str, str], recipe: str | None = None) -> TrainConfig:
    """Make a TrainConfig from a recipe and NAME=VALUE texts, which override the recipe.

    Without `epochs` and `steps`, a training lasts one epoch.

    Args:
        texts: Values of fields as text, by name.
        recipe: A preset, or a YAML file with fields of TrainConfig.

    Raises:
        WorkbenchError: If a preset, field or file is unknown, or a field cannot have this value.
    """
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    changes = {}
    for name, text in texts.items():
        if name not in fields:
            raise unknown("field of TrainConfig", name, fields)
        changes[name] = text if fields[name].type is str else parse_value(name, text)
    if recipe is not None and not recipe.endswith((".yaml", ".yml")):
        return changed(preset(recipe), changes)
    values = _read_recipe(recipe) if recipe is not None else {}
    if values.get("epochs") is None and values.get("steps") is None:
        values["epochs"] = 1.0
    return changed(TrainConfig.from_dict(values), changes)


def given_fields(texts: dict[str, str], recipe: str | None = None) -> set[str]:
    """Return the fields that a recipe and NAME=VALUE texts set. A preset sets all fields.

    Args:
        texts: As in `parse_config`.
        recipe: As in `parse_config`.
    """
    if recipe is None:
        return set(texts)
    if recipe.endswith((".yaml", ".yml")):
        return set(texts) | set(_read_recipe(recipe))
    return {f.name for f in dataclasses.fields(TrainConfig)}


def default_clip(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """Return the configuration without AGC if the network has BatchNorm, for users who did not set `clip`.

    BatchNorm needs no clipping. AGC at the default threshold would change the training without a word.

    Args:
        config: A configuration whose `clip` nobody set.
        model: Its network.
    """
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return config.replace(clip=None) if normalized else config


def clipping_text(config: TrainConfig) -> str:
    """Return in words what a configuration clips, and at which threshold."""
    if config.clip_norm is not None:
        return f"clips the norm of the whole gradient at {config.clip_norm:g}"
    if config.clip is None:
        return "clips nothing (clip=null)"
    exempt = ["the classifier"] * (not config.clip_head) + config.clip_exempt
    return f"AGC clips at {config.clip:g}" + (f", except {', '.join(exempt)}" if exempt else "")


def parse_value(name: str, text: str) -> object:
    """Read the text of NAME=TEXT as YAML.

    Raises:
        WorkbenchError: If the text is not YAML.
    """
    return load_yaml(text, f"`{name}={shown(text, 80, quote=False)}`")


def _read_recipe(file: str) -> dict:
    values = read_yaml(local_path(file))
    if not isinstance(values, dict):
        raise WorkbenchError(f"{file} must hold fields of TrainConfig. Write one `name: value` per line.")
    return values


def recipe_text(config: TrainConfig) -> str:
    """Return a configuration as YAML for `parse_config`, with fields in TrainConfig's order."""
    return dump_yaml(config.to_dict())
