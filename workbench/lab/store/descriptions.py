"""Text for the pages of runs: the description of a training, and the values of parameters."""

import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes as long to import as MLflow, and readers of the store do not need it
    from workbench.training import TrainResult


def in_words(result: "TrainResult") -> str:
    """Describe a training and its result in one sentence."""
    config, accuracy = result.config, result.metrics.get("test_acc", result.metrics.get("val_acc"))
    clip = "no clipping" if config.clip is None else f"clipping threshold {config.clip:g}"
    clip = f"clipping by the global norm {config.clip_norm:g}" if config.clip_norm is not None else clip
    length = f"{config.steps} steps" if config.steps is not None else f"{config.epochs:g} epochs"
    text = f"{config.model} on {config.data}, batch {config.batch_size}, peak learning rate {config.lr:.3g}, {clip}, "
    text += f"{length}, seed {config.seed}: {result.outcome}"
    if result.cause:
        text += f" ({result.cause})"
    elif accuracy is not None:
        text += f", {'test' if 'test_acc' in result.metrics else 'validation'} accuracy {accuracy:.2%}"
    return f"{text}."


def as_param(value) -> str:
    """Return the text that the store keeps for the value of a parameter."""
    return value if isinstance(value, str) else json.dumps(value, default=dataclasses.asdict)  # for Range


def params_of(result: "TrainResult") -> dict[str, str]:
    """Return the parameters of a training's run, as text. Those without a value are left out."""
    from workbench.networks import network_info

    config = result.config
    norm = config.model_args.get("norm", network_info(config.model).norm)
    params = {
        "model": config.model,
        "norm": norm,
        "batch_size": config.batch_size,
        "base_lr": config.base_lr,
        "lr": config.lr,
        "clip": config.clip,
        "clip_on": int(config.clip is not None),
        "clip_norm": config.clip_norm,
        "lr_x_clip": config.lr * config.clip if config.clip else None,
        "weight_decay": config.weight_decay,
        "steps": result.metrics.get("steps_planned"),
        "epochs": config.epochs,
        "optimizer": "sgd" if config.sam_rho is None else "sam",  # SAM steps with SGD, too
        "width": config.model_args.get("width"),
        "depth": result.metrics.get("depth"),
        "n_params": result.metrics.get("n_params"),
        "data": config.data,
        "train_size": config.train_size,
        "seed": config.seed,
    }
    return {name: as_param(value) for name, value in params.items() if value is not None}
