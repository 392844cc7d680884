"""Every two arms of a study side by side, and every arm beside itself under another condition: what is told beyond the
contrast. Many pairs are looked at, and no p-value is adjusted, so a pair alone decides nothing."""

from itertools import combinations

import pandas as pd

from workbench.lab.statistics.intervals import difference_p, paired_interval
from workbench.lab.statistics.rates import best_rates, by_seed

CONDITIONS = ("batch_size", "micro_batch", "protocol")  # under which an arm trains


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """One row a pair: `a` and `b`, difference (accuracy of `a` minus that of `b`, paired by seed) with low and high
    (95 %), n, and p of no difference, not adjusted.

    Columns of `table`: arm, seed, lr, val_acc, test_acc where it was read, and the conditions. An arm that trained at
    several rates under one condition stands at its best one, by validation accuracy. Paired are two arms under the
    same condition, and one arm under two. Empty where a seed trained an arm more than once under a condition.
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
