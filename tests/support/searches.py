"""A small search, for tests."""

from workbench.lab import Session, Store
from workbench.training import TrainConfig

SPACE = {"clip": {"low": 0.002, "high": 0.64, "log": True}, "base_lr": {"low": 0.1, "high": 2000.0, "log": True}}
BASE = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0},
    batch_size=32,
    steps=4,
    train_size=64,
    progress=False,
    device="cpu",
)


def session(root):
    store = Store()
    return Session(
        store, "mine", "full", store.open_notebook("mine", "mine.ipynb", {}, "full", "mine", {}), by_hand=False
    )


def objective(point):
    return BASE.replace(**point)
