"""Compare every two arms of a study, and every arm with itself under another condition.

These comparisons are in addition to the contrast. There are many of them and no p-value is adjusted, so a single pair
decides nothing.
"""

from itertools import combinations

import pandas as pd

from workbench.lab.statistics.intervals import difference_p, paired_interval
from workbench.lab.statistics.rates import best_rates, by_seed

CONDITIONS = ("batch_size", "micro_batch", "protocol")


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Compare pairs by accuracy, paired by seed.

    A pair is two arms under the same condition, or one arm under two conditions. An arm with several rates under one
    condition counts at its best one, by validation accuracy.

    Args:
        table: Columns arm, seed, lr, val_acc, test_acc if it was read, and the conditions.

    Returns:
        One row per pair. Columns a, b, difference (accuracy of `a` minus that of `b`) with low and high (95 %), n, and
        p of no difference, not adjusted. Empty if a seed trained an arm more than once under a condition.
    """
    score = "test_acc" if "test_acc" in table else "val_acc"
    if not {"arm", "seed", "lr", "val_acc"} <= set(table):
        return pd.DataFrame()
    varied = [name for name in CONDITIONS if name in table and table[name].nunique(dropna=False) > 1]
    named = table.assign(condition=[", ".join(_text(n, row[n]) for n in varied) for _, row in table.iterrows()])
    best = named.merge(best_rates(named, by=["condition"])[["condition", "arm", "lr"]])
    if best.duplicated(["condition", "arm", "seed"]).any():
        return pd.DataFrame()
    values = by_seed(best, columns=["condition", "arm"], value=score)
    order = list(dict.fromkeys(zip(best.condition, best.arm, strict=True)))
    rows = []
    for a, b in combinations(order, 2):
        both = values[[a, b]].dropna()
        if (a[0] == b[0] or a[1] == b[1]) and len(both) > 1:
            interval = paired_interval(both[a], both[b])
            rows.append({"a": _name(a), "b": _name(b), "difference": interval.mean, "low": interval.low,
                         "high": interval.high, "n": interval.n, "p": difference_p(both[a] - both[b])})  # fmt: skip
    return pd.DataFrame(rows)


def _text(name: str, value) -> str:
    if isinstance(value, str):
        return f"{value} {name}"
    return f"{name.replace('_size', '')} {'whole' if pd.isna(value) else f'{value:g}'}".replace("_", "-")


def _name(group: tuple[str, str]) -> str:
    condition, arm = group
    return ", ".join(filter(None, (arm, condition)))
