"""Tables like those of the studies, with known answers."""

import pandas as pd


def signal_table(factor):
    rows = []
    for arm in ("NF", "NF without scaled WS", "BN"):
        for seed in range(3):
            for block in range(5):
                expected = 1 + 0.04 * block
                grow = {"NF": factor, "BN": 1 + 0.68 * block, "NF without scaled WS": 1.0}[arm]
                rows.append(
                    {"arm": arm, "input": "noise", "seed": seed, "stage": -1 if block == 0 else 0, "block": block,
                     "var": expected * (grow + 0.001 * seed), "expected_var": expected,
                     "mean_sq": 0.01 if arm == "NF" else 9.0, "residual_var": 1.0, "grad_var": 1.0, "dead": 0.0}
                )  # fmt: skip
    return pd.DataFrame(rows)


def trials():
    return pd.DataFrame(
        {"arm": ["NF+AGC"] * 3 + ["NF"], "state": ["COMPLETE"] * 3 + ["COMPLETE"],
         "outcome": ["complete", "complete", "diverged", "complete"],
         "clip": [0.01, 0.08, 0.64, None], "lr": [1.0, 1.0, 1.0, 0.5], "val_acc": [0.80, 0.79, 0.10, 0.7],
         "val_loss": 1.0, "data": "cifar10"}
    )  # fmt: skip


def confirmed(difference, noise=0.001):
    rows = [
        {"arm": arm, "seed": s,
         "val_acc": 0.7 + (difference if arm == "NF+AGC" else 0) + noise * (s if arm == "NF" else 0),
         "lr": 1.0, "clip": 0.01, "batch_size": 64, "failed": 0, "outcome": "complete",
         "val_loss": 1.0, "data": "cifar10"}
        for arm in ("NF+AGC", "NF") for s in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)
