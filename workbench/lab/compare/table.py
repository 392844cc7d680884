"""Trainings compared: grouped over their seeds, ranked, with ties where the seeds do not tell them apart.

Tables in, tables out; `selection` reads them from the store. A group is one configuration on the same data by the same
code. Its accuracy is the mean over all its seeds, those that failed too (a training that diverged counts as guessing),
with the 95 % t-interval.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.errors import WorkbenchError, unknown
from workbench.lab.compare import selection
from workbench.lab.statistics.intervals import LEVEL, accuracy_interval
from workbench.lab.store.client import Store

GROUP = ["config_id", "data_digest", "code"]
SHOWN = ["arm", "batch_size", "lr", "clip"]
TELL_APART = [
    "model",
    "data",
    "train_size",
    "clip_norm",
    "width",
    "steps",
    "epochs",
    "weight_decay",
    "role",
]  # shown where the others look alike
COMPUTE = {"seconds": "seconds", "samples": "samples_seen"}
MOST_READ = 60  # configurations that are read to tell equal-looking groups apart


@dataclass(frozen=True)
class Comparison:
    """`table`: one row a group, the best first: rank (1 + the number of groups shown to be better; NaN with one seed),
    tie (not told apart from the best), arm, batch_size, lr, clip, what else tells the groups apart, seeds, failed, mean
    accuracy with low and high, minus_best with its bounds and `interval` (paired by seed, or Welch), device_seconds,
    config_id. `rows`: the trainings, with their `group`, an index of the table, and `accuracy`. `metric`: val_acc or
    test_acc. `warnings`: what makes the groups incomparable; `notes`: how to read the table.
    """

    table: pd.DataFrame
    rows: pd.DataFrame
    metric: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def from_store(
    store: Store,
    what: Iterable[str] = (),
    *,
    tags: dict[str, str] | None = None,
    filter: str | None = None,
    role: str | None = None,
    mode: str = "full",
    equal: str | None = None,
) -> Comparison:
    """Picks trainings from the store (the arguments of `selection.pick`) and compares them; with `equal`, seconds or
    samples, at the largest compute that all of them reached.

    Raises: WorkbenchError for what the store does not have.
    """
    if equal is not None and equal not in COMPUTE:
        raise unknown("compute", equal, COMPUTE)
    rows = selection.pick(store, what, tags=tags, filter=filter, role=role, mode=mode)
    alike = look_alike(rows)
    apart = {}
    if len(alike) <= MOST_READ:
        config_ids = rows.set_index("run_id").config_id
        apart = {config_ids[run_id]: selection.configuration(store, run_id) for run_id in alike}
    notes = ["quick trainings: a demonstration, never evidence."] if mode == "quick" else []
    if equal is None:
        comparison = compare(rows, apart)
        seen = comparison.rows[comparison.rows.outcome == "complete"].samples_seen
        if len(seen) and seen.max() > 1.01 * seen.min():
            notes.append(f"they saw from {seen.min():,.0f} to {seen.max():,.0f} samples: --equal samples, or seconds.")
    else:
        ended = rows[rows.status == "FINISHED"]
        rows, budget = at_equal_compute(ended, selection.curves(store, ended.run_id), equal)
        unit = "device seconds" if equal == "seconds" else "samples"
        notes.append(
            f"accuracy at {budget:,.4g} {unit}, the most that all of them reached; a training that goes on from there "
            "has not yet lowered its rate as a shorter one would have."
        )
        comparison = compare(rows, apart, metric="val_acc")
    return dataclasses.replace(comparison, notes=(*notes, *comparison.notes))


def compare(rows: pd.DataFrame, distinguish: dict[str, dict] | None = None, *, metric: str | None = None) -> Comparison:
    """Groups and ranks trainings (the columns of `selection.pick`).

    `distinguish` has whole configurations by config_id, to name what tells equal-looking groups apart. `metric`: the
    column that is compared; None: test_acc where all are confirmations with one, else val_acc.
    Raises: WorkbenchError where no training has ended.
    """
    ended = rows[rows.outcome.isin(["complete", "diverged"]) & (rows.status == "FINISHED")]
    notes = _left_out(rows, ended)
    if ended.empty:
        raise WorkbenchError(f"none of the {len(rows)} trainings has ended ({'; '.join(notes)}): nothing to compare.")
    again = ended.duplicated([*GROUP, "seed"])  # newest first
    if again.any():
        notes.append(f"{again.sum()} trainings are repetitions of others (same configuration and seed): newest taken.")
    ended = ended[~again]
    metric = metric or _metric(ended)
    # A training that diverged has no accuracy on the test split: it is guessing there, too.
    accuracy = ended[metric].where(ended[metric].notna() | (ended.failed != 1), ended.val_acc)
    ended = ended.assign(accuracy=accuracy)
    if ended.accuracy.isna().any():
        notes.append(f"{ended.accuracy.isna().sum()} trainings have no {words(metric)} and are left out.")
        ended = ended[ended.accuracy.notna()]
    if ended.empty:
        raise WorkbenchError(f"no training has a {words(metric)}: nothing to compare.")
    ended = ended.assign(group=ended.groupby(GROUP, sort=False).ngroup())
    order = ended.groupby("group").accuracy.mean().sort_values(ascending=False, kind="stable").index
    ended["group"] = ended.group.map({group: place for place, group in enumerate(order)})
    table = ranked(ended)
    table = _described(table, ended, distinguish or {})
    return Comparison(table, ended, metric, tuple(concerns(ended)), tuple(notes + _how_to_read(table)))


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a group: seeds, failed, mean, low, high, device_seconds, rank, tie, and the difference from the best.

    `rows`: group (0 is the group of the highest mean), seed, accuracy, failed, device_seconds. Two groups that share
    all seeds of the smaller one are paired by seed, others compared by Welch's interval.
    """
    over = rows.groupby("group")
    intervals = [accuracy_interval(values) for _, values in over.accuracy]
    groups = pd.DataFrame(
        {
            "seeds": over.size(),
            "failed": over.failed.sum().astype(int),
            "mean": [i.mean for i in intervals],
            "low": [i.low for i in intervals],
            "high": [i.high for i in intervals],
            "device_seconds": over.device_seconds.mean(),
        }
    )
    by_seed = rows.pivot_table(index="seed", columns="group", values="accuracy").to_numpy()  # (seeds, groups)
    ranking = groups.index[groups.seeds > 1]
    better = pd.Series(0, index=groups.index)
    for one in ranking:
        _, low, _, _ = differences(by_seed, one)
        better += np.nan_to_num(low) > 0
    groups["rank"] = (1.0 + better).where(groups.seeds > 1)
    if len(ranking):
        best = ranking[0]
        mean, low, high, paired = differences(by_seed, best)
        from_best = {"minus_best": -mean, "minus_best_low": -high, "minus_best_high": -low}
        for name, values in from_best.items():
            groups[name] = np.where((groups.index == best) | np.isnan(low), np.nan, values)
        groups["interval"] = np.where(np.isnan(groups.minus_best), "", np.where(paired, "paired", "Welch"))
        groups["tie"] = (groups.minus_best_low <= 0) & (groups.minus_best_high >= 0)
        groups.loc[best, "tie"] = groups.tie.any()
    else:
        groups[["minus_best", "minus_best_low", "minus_best_high"]] = np.nan
        groups["interval"], groups["tie"] = "", False
    return groups


def differences(by_seed: np.ndarray, one: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Column `one` minus every column: mean, low and high of its 95 % interval, and whether it is paired.

    `by_seed`: (seeds, groups), NaN where a group has no such seed. Paired where the two share all seeds of the smaller,
    and at least two; else Welch's; NaN where one of them has a single seed.
    """
    from scipy import stats

    n, column = np.isfinite(by_seed).sum(0), by_seed[:, [one]]
    mean, variance = _moments(by_seed)
    shared = column - by_seed
    pairs = np.isfinite(shared).sum(0)
    paired = (pairs == np.minimum(n, n[one])) & (pairs > 1)
    paired_mean, paired_variance = _moments(shared)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = variance / n
        squared = parts + parts[one]
        freedom = squared**2 / (parts**2 / (n - 1) + parts[one] ** 2 / (n[one] - 1))
        freedom = np.where(paired, pairs - 1, np.where(squared > 0, freedom, n + n[one] - 2))
        error = np.sqrt(np.where(paired, paired_variance / pairs, squared))
        middle = np.where(paired, paired_mean, mean[one] - mean)
        half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    return middle, middle - half, middle + half, paired


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance of the finite values in each column; NaN where there are too few."""
    finite, n = np.isfinite(values), np.isfinite(values).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(finite, values, 0).sum(0) / n
        return mean, np.where(n > 1, (np.where(finite, values - mean, 0) ** 2).sum(0) / (n - 1), np.nan)


def concerns(rows: pd.DataFrame) -> list[str]:
    """What makes trainings incomparable, a sentence each: other data, code, devices, numbers of images or failure
    rules, mixed roles."""
    texts = []
    several = [
        ("data_digest", "data", "accuracies on different images say nothing about the networks"),
        ("code", "code", "a difference may come from the code and not from the configuration"),
        ("device", "devices", "device seconds are not comparable, and equal seeds no longer give equal numbers"),
    ]
    for column, what, why in several:
        counts = rows[column].value_counts()
        if len(counts) > 1:
            named = (
                rows.groupby(column).data.unique().map(", ".join) + " "
                if what == "data"
                else dict.fromkeys(counts.index, "")
            )
            labels = [f"{named[value]}{value[:16] or 'unknown'} ({n} trainings)" for value, n in counts.head(4).items()]
            texts.append(f"different {what}: {', '.join(labels)}{', ...' if len(counts) > 4 else ''}: {why}.")
    sizes = rows.train_size.map(lambda n: "all" if math.isnan(n) else f"{n:.0f}").value_counts()
    # trainings that an older version stored have no such column; their code is another, which is told above
    if rows.train_size.nunique() > 1 or (rows.groupby("code").train_size.nunique(dropna=False) > 1).any():
        labels = [f"{size} ({n} trainings)" for size, n in sizes.items()]
        texts.append(f"different numbers of training images: {', '.join(labels)}: more images alone raise accuracy.")
    texts += _failure_rules(rows)
    if "search" in set(rows.role) and rows.role.nunique() > 1:
        texts.append(
            "trials of a search are among others: the best of many trials looks better than it is, so choose by --role."
        )
    if {"screen", "confirm"} <= set(rows.role):
        texts.append(
            "trainings that chose a setting are among those that confirm it: the chosen look better than they are, so "
            "choose by --role."
        )
    return texts


def _failure_rules(rows: pd.DataFrame) -> list[str]:
    """Whether one rule can have judged them all: no completed training failed at a loss at which another did not."""
    texts = []
    for name, same in rows[rows.outcome == "complete"].groupby("data"):
        failed, sound = same.train_loss[same.failed == 1].min(), same.train_loss[same.failed == 0].max()
        if failed <= sound:
            texts.append(
                f"different failure rules: on {name} a training loss of {failed:.3g} counts as failed in one, and "
                f"{sound:.3g} as sound in another: shares of failures are not comparable."
            )
    return texts


def at_equal_compute(rows: pd.DataFrame, curves: pd.DataFrame, by: str) -> tuple[pd.DataFrame, float]:
    """(rows with val_acc at equal compute, the compute): the largest that every training reached, in `by`: device
    seconds or samples.

    Between two evaluations the curve is taken as straight; before the first it is unknown (NaN). A training that
    diverged counts as guessing where it ended before. `curves` as of `selection.curves`.
    """
    if by not in COMPUTE:
        raise unknown("compute", by, COMPUTE)
    rows = rows[rows.outcome.isin(["complete", "diverged"]) & (rows.status == "FINISHED")]
    x = COMPUTE[by]
    points = {run_id: curve.sort_values(x) for run_id, curve in curves.groupby("run_id")}
    complete = [run_id for run_id in rows.run_id[rows.outcome == "complete"] if run_id in points]
    if not complete:
        raise WorkbenchError("no training of the selection is complete: there is no common compute.")
    budget = float(min(points[run_id][x].max() for run_id in complete))

    def accuracy(row) -> float:
        curve = points.get(row.run_id)
        if row.outcome == "diverged" and (curve is None or curve[x].max() < budget):
            return row.val_acc
        return math.nan if curve is None else float(np.interp(budget, curve[x], curve.val_acc, left=math.nan))

    return rows.assign(val_acc=[accuracy(row) for row in rows.itertuples()]), budget


def look_alike(rows: pd.DataFrame) -> list[str]:
    """The run ids of one training of each group, where some groups cannot be told apart by the store's columns."""
    groups = rows[rows.status == "FINISHED"].drop_duplicates(GROUP)
    alike = groups.duplicated([*SHOWN, *TELL_APART], keep=False)
    return list(groups.run_id[alike])


def words(metric: str) -> str:
    """A metric in words."""
    return {"val_acc": "validation accuracy", "test_acc": "test accuracy"}.get(metric, metric)


def _metric(ended: pd.DataFrame) -> str:
    tested = (ended.role == "confirm") & (ended.test_acc.notna() | (ended.failed == 1))
    return "test_acc" if tested.all() and ended.test_acc.notna().any() else "val_acc"


def _left_out(rows: pd.DataFrame, ended: pd.DataFrame) -> list[str]:
    rest = rows.drop(ended.index)
    state = rest.status.where(rest.outcome != "pruned", "PRUNED").str.lower()
    shown = {"finished": "broken", "killed": "interrupted", "failed": "broken"}
    counts = state.map(lambda s: shown.get(s, s)).value_counts()
    return [f"left out: {', '.join(f'{n} {what}' for what, n in counts.items())}."] if len(counts) else []


def _described(table: pd.DataFrame, rows: pd.DataFrame, distinguish: dict[str, dict]) -> pd.DataFrame:
    """The table with the configuration in front: SHOWN, and of the rest what tells equal-looking groups apart."""
    first = rows.groupby("group").first()
    known = pd.DataFrame([distinguish.get(config, {}) for config in first.config_id], index=first.index)
    first = first.join(known[[c for c in known if c not in first and c not in ("base_lr", "scale_lr")]])
    first["code"], first["data_digest"] = first.code.str[:8], first.data_digest.str[:8]
    columns = [*SHOWN, *(["data"] if first.data.nunique() > 1 else [])]
    as_text = first.map(lambda value: value if isinstance(value, str | float | int) else str(value))
    for name in [*TELL_APART, *known.columns, "data_digest", "code"]:
        if name in as_text and name not in columns:
            kinds = as_text.groupby(columns, dropna=False)[name].nunique(dropna=False)
            columns += [name] if kinds.max() > 1 else []
    front = ["rank", "tie"]
    return pd.concat([table[front], first[columns], table.drop(columns=front), first[["config_id"]]], axis=1)


def _how_to_read(table: pd.DataFrame) -> list[str]:
    notes = []
    alone = int((table.seeds < 2).sum())
    if alone == len(table):
        notes.append("one seed each: there is no interval, so nothing is ranked; sorted by accuracy.")
    elif alone:
        notes.append(f"{alone} of {len(table)} groups have one seed: no interval, so no rank.")
    if len(table) > alone:
        notes.append("rank: 1 + the number of groups that are shown to be better.")
    if table.tie.any():
        notes.append(
            f"tie: {int(table.tie.sum())} groups are not told apart from the best, the 95 % interval of their "
            "difference from it holds 0; more seeds would tell."
        )
    if len(table) > 20:
        notes.append(f"each interval is at 95 % by itself: among {len(table)} groups some differ by chance.")
    return notes
