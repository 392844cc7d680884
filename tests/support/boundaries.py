"""Tables of trainings that fail by a known rule, like those of the studies of stability."""

import math
from itertools import product

import numpy as np
import pandas as pd

LRS = [0.2 * 2**i for i in range(8)]


def outcomes(boundary, batches=(128, 512), clips=(0.01, 0.04, 0.16, 0.64, None), seeds=4, spread=0.15, lrs=LRS):
    """Trainings that fail above the rate `boundary(batch, clip)`, with random shifts of `spread` doublings."""
    rng, rows = np.random.default_rng(0), []
    for batch, clip, lr, seed in product(batches, clips, lrs, range(seeds)):
        failed = math.log2(lr) > math.log2(boundary(batch, clip)) + rng.normal(0, spread)
        accuracy = 0.1 if failed else 0.3 + 0.02 * math.log2(lr)
        rows.append(
            {"arm": "NF" if clip is None else "NF+AGC", "batch_size": batch, "clip": clip, "lr": lr, "seed": seed,
             "failed": int(failed), "outcome": "diverged" if failed else "complete", "val_acc": accuracy,
             "val_loss": 1.0, "data": "cifar10",
             "run_id": f"{batch}-{clip}-{lr}-{seed}"}
        )  # fmt: skip
    return pd.DataFrame(rows).astype({"clip": float})


def by_product(batch, clip):
    return 1.0 if clip is None else max(1.0, 0.1 / clip)


def by_rate(batch, clip):
    return 1.0
