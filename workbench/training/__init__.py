"""Train from a frozen configuration and return the result as data, without any tracking."""

from workbench.training.config import TrainConfig, TrainResult, code_hash, config_id, planned, training_key
from workbench.training.loop import train

__all__ = ["TrainConfig", "TrainResult", "code_hash", "config_id", "planned", "train", "training_key"]
