"""Rows like those of the store's trainings, for the tests of comparisons."""

import pandas as pd

from workbench.lab.compare.selection import COLUMNS
from workbench.training import TrainConfig, TrainResult


def rows(*groups: dict) -> pd.DataFrame:
    """One row per seed of each group {"config_id": "a", "val_acc": [0.5, 0.6], ...}. Lists hold one value per seed."""
    table_rows = []
    for group in groups:
        accuracies = group["val_acc"]
        for seed, accuracy in enumerate(accuracies):
            row = {"run_id": f"{group['config_id']}{seed}", "status": "FINISHED", "outcome": "complete", "arm": "NF"}
            row |= {"role": "screen", "code": "c", "data_digest": "d", "data": "mnist5k", "device": "cpu"}
            row |= {"batch_size": 64.0, "lr": 0.1, "failed": 0.0, "train_loss": 1.0, "samples_seen": 640.0}
            row |= {"val_loss": 1.0, "classes": 10.0}
            row |= {"device_seconds": 2.0, "seed": float(seed)}
            given = {k: v[seed] if isinstance(v, list) else v for k, v in group.items()}
            table_rows.append(row | given | {"val_acc": accuracy})
    return pd.DataFrame(table_rows).reindex(columns=list(COLUMNS)).assign(name="training", key="")


def log(store, accuracy: float, *, arm: str = "NF", seed: int = 0, mode: str = "full", study: str | None = "mine",
        code="c", role="screen", outcome="complete", seconds: float = 10.0, owner: str = "run",
        classes: int | None = 10,
        **config) -> str:  # fmt: skip
    """Record a finished training with two evaluations: first half the accuracy, then all of it."""
    config = TrainConfig(**{"steps": 4, "batch_size": 64, "base_lr": 1.6} | config, seed=seed)
    at = lambda step: {"step": step, "samples_seen": step * config.batch_size, "seconds": seconds * step / 4,
                       "val_acc": accuracy * step / 4, "val_loss": 1.0, "train_loss": 1.0}  # fmt: skip
    metrics = {"val_acc": accuracy, "val_loss": 1.0, "train_loss": 1.0, "classes": classes, "steps_planned": 4,
               "steps_done": 4, "failed": int(outcome == "diverged"), "samples_seen": 4 * config.batch_size,
               "device_seconds": seconds}  # fmt: skip
    key = f"{arm}{seed}{config.lr}{code}{config.label_smoothing}{mode}".encode().hex().ljust(64, "0")
    run_id = store.open_training(config, key, mode, role=role, arm=arm, owner=None)
    history = [at(2), at(4)] if outcome == "complete" else [at(2)]
    result = TrainResult(key, config, outcome, history, metrics, device="cpu", data_digest="d", code=code,
                         versions={"torch": "2.13.0"})  # fmt: skip
    store.log_rows(run_id, history)
    store.finish_training(run_id, result)
    if study:
        store.tag_study(run_id, study, owner)
    return run_id
