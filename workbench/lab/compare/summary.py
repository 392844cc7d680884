"""A comparison as output: printed table, verdict, CSV file, and address of MLflow's page."""

import math

import pandas as pd

from workbench.files import local_path, write_whole
from workbench.lab.compare.table import Comparison, words
from workbench.lab.store.client import Store

LABELS = {
    "batch_size": "batch",
    "lr": "peak lr",
    "weight_decay": "weight decay",
    "data_digest": "data bytes",
    "train_size": "images",
}
NOT_IN_NAME = (
    "rank",
    "seeds",
    "failed",
    "collapsed",
    "minus best, points",
    "device s",
    "config",
)  # not part of a group's name
MOST_SIDE_BY_SIDE = 30  # runs on MLflow's compare page


def as_text(comparison: Comparison) -> pd.DataFrame:
    """Return the printed table, all cells as text. A shared rank ends with "="."""
    table = comparison.table
    shared = table["rank"].duplicated(keep=False)
    shown = pd.DataFrame(index=table.index)
    shown["rank"] = [
        "" if math.isnan(rank) else f"{rank:.0f}{'=' if same else ''}"
        for rank, same in zip(table["rank"], shared, strict=True)
    ]
    first, last = table.columns.get_loc("tie") + 1, table.columns.get_loc("seeds")
    for name in table.columns[first:last]:
        shown[LABELS.get(name, name)] = [_plain(name, value) for value in table[name]]
    shown["seeds"] = table.seeds.astype(str)
    for name in ("failed", "collapsed"):
        shown[name] = [str(n) if n else "" for n in table[name]]
    shown[words(comparison.metric)] = [
        f"{row.mean:.2%}" + ("" if math.isnan(row.low) else f" [{row.low:.2%}, {row.high:.2%}]")
        for row in table[["mean", "low", "high"]].set_axis(["mean", "low", "high"], axis=1).itertuples(index=False)
    ]
    shown["minus best, points"] = [_minus_best(row) for row in table.itertuples()]
    if len(table) > 1 and (table.seeds > 1).any():
        shown.loc[(table.seeds > 1).idxmax(), "minus best, points"] = "best"
    shown["device s"] = ["" if math.isnan(s) else f"{s:,.3g}" for s in table.device_seconds]
    shown["config"] = table.config_id
    return shown


def group_names(comparison: Comparison) -> dict[int, str]:
    """Name each group by the settings that vary among the groups."""
    text = as_text(comparison)
    text = text[[c for c in text if c not in NOT_IN_NAME and c != words(comparison.metric)]]
    varied = [c for c in text if text[c].nunique() > 1] or ["arm"]
    return {
        group: ", ".join(
            value if name in ("arm", "model") else f"{name} {value}" for name, value in row.items() if value
        )
        for group, row in zip(comparison.table.index, text[varied].to_dict("records"), strict=True)
    }


def verdict(comparison: Comparison) -> str:
    """Say which group is best, and whether it is significantly better than the others."""
    table, names = comparison.table, group_names(comparison)
    ranked = table[table.seeds > 1]
    if ranked.empty:
        return f"No group is ranked, because the {len(table)} groups have one seed each. Train more seeds."
    best = ranked.index[0]
    mean = as_text(comparison).loc[best, words(comparison.metric)]
    text = f"Highest {words(comparison.metric)}: {names[best]}, {mean}, {ranked.seeds[best]} seeds."
    others = ranked.drop(best)
    if others.empty:
        return f"{text} No other group has several seeds, so there is no comparison."
    ties = int(others.tie.sum())
    if ties == 0:
        group = "the other group" if len(others) == 1 else f"all {len(others)} other groups"
        return f"{text} It is significantly better than {group}."
    groups = "group" if len(others) == 1 else "groups"
    return f"{text} It is indistinguishable from {ties} of {len(others)} other {groups}."


def _minus_best(row) -> str:
    if math.isnan(row.minus_best):
        return ""
    mean, low, high = (round(100 * x, 2) + 0.0 for x in (row.minus_best, row.minus_best_low, row.minus_best_high))
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{'  tie' if row.tie else ''}"  # + 0.0: no minus zero


def _plain(name: str, value) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return {"clip": "none", "train_size": "all"}.get(name, "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def to_csv(comparison: Comparison, file: str) -> None:
    """Write the table as CSV with plain numbers. Accuracies are fractions from 0 to 1."""
    whole = {name: "Int64" for name in ("rank", "batch_size", "steps") if name in comparison.table}
    table = comparison.table.astype(whole).assign(metric=comparison.metric)
    write_whole(local_path(file), lambda part: table.to_csv(part, index=False))


def address(store: Store, comparison: Comparison, mode: str = "full") -> str:
    """Return the address of MLflow's page for these trainings.

    The page shows up to `MOST_SIDE_BY_SIDE` trainings side by side, and more as the experiment grouped by seeds.
    """
    runs = list(comparison.rows.run_id)
    if len(runs) > MOST_SIDE_BY_SIDE:
        return f"{store.experiment_url('trainings', mode)}&viewStateShareKey=seeds"
    return store.compare_url(runs, "trainings", mode)
