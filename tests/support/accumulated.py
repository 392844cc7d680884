"""Tables of gradients and trainings like those of the study of accumulation."""

import pandas as pd


def trainings(nf, bn=0.01, seeds=8, spread=0.001):
    rows = []
    for seed in range(seeds):
        for arm, shift in (("NF+AGC", nf), ("BN", bn)):
            noise = spread * (-1) ** seed
            rows.append(
                {"arm": arm, "micro_batch": None, "seed": seed, "test_acc": 0.5 + seed / 100, "batch_size": 256}
            )
            rows.append(rows[-1] | {"micro_batch": 16.0, "test_acc": 0.5 + seed / 100 + shift + noise})
    return pd.DataFrame(rows)


GRADIENTS = pd.DataFrame({"arm": ["NF+AGC", "BN"], "micro_batch": [16, 16], "seed": [0, 0], "difference": [1e-15, 0.3]})
