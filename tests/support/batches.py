"""Tables of trainings over batch sizes and rates like those of the study large_batch."""

import pandas as pd


def batch_table(nf_fails, agc_fails, cells=6):
    rows = [
        {"arm": arm, "batch_size": 64, "lr": 0.4, "seed": s, "val_acc": 0.1 if f else 0.8, "failed": int(f),
         "outcome": "diverged" if f else "complete", "val_loss": 1.0, "data": "cifar10"}
        for arm, fails in (("NF", nf_fails), ("NF+AGC", agc_fails), ("BN", 0))
        for s, f in enumerate([True] * fails + [False] * (cells - fails))
    ]  # fmt: skip
    return pd.DataFrame(rows)
