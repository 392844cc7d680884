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
    if result.outcome == "complete" and result.metrics.get("failed"):
        text += "; failed by the failure rule: its training loss is above 0.8 ln(classes)"
    return f"{text}."


def as_param(value) -> str:
    """Return the text that the store keeps for the value of a parameter."""
    return value if isinstance(value, str) else json.dumps(value, default=dataclasses.asdict)  # for Range
