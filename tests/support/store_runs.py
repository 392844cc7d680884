"""Made-up runs of trainings."""

import dataclasses

from workbench.outcomes import COLLAPSED, at_end
from workbench.training import TrainConfig, TrainResult

CONFIG = TrainConfig(steps=4, batch_size=64, base_lr=1.6, clip=0.04, seed=2)


def result(outcome="complete", **changes):
    loss = 2.3 if outcome == COLLAPSED else 1.0
    if outcome == COLLAPSED:
        changes["cause"] = at_end(loss, 10)[1]
    history = [
        {
            "step": s,
            "epoch": s / 10,
            "samples_seen": 64 * s,
            "lr": 0.1,
            "train_loss": 1.0,
            "val_loss": loss,
            "val_acc": 0.5 + s / 10,
        }
        for s in (2, 4)
    ]
    metrics = {
        "val_acc": 0.9,
        "train_loss": 1.0,
        "failed": int(outcome == COLLAPSED),
        "steps_planned": 4,
        "steps_done": 4,
        "samples_seen": 256,
        "depth": 3,
        "n_params": 10,
        "classes": 10,
    }
    return TrainResult(
        "k" * 64, CONFIG, outcome, history, metrics, device="cpu x", data_digest="d", code="c", **changes
    )


def log_training(store, outcome="complete", key="k" * 64, owner=None):
    run_id = store.open_training(CONFIG, key, "full", role="screen", arm="NF+AGC", owner=owner)
    store.log_rows(run_id, result().history)
    store.finish_training(run_id, dataclasses.replace(result(outcome), key=key))
    return run_id
