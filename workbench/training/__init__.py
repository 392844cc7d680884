"""A frozen configuration in, a result as data out; knows nothing of tracking."""

from workbench.training.config import TrainConfig, TrainResult, code_hash, config_id, planned, training_key
from workbench.training.loop import train

__all__ = ["TrainConfig", "TrainResult", "code_hash", "config_id", "planned", "train", "training_key"]
