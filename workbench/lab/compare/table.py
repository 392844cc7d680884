"""Comparison of trainings: grouped over seeds and ranked, with ties.

A group is one configuration on the same data with the same code. Its accuracy is the mean over all its seeds with the
95 % t-interval. Failed seeds count: a training that diverged counts as guessing, and one that collapsed guesses.
`selection` reads the trainings from the store.
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
from workbench.outcomes import COLLAPSED, DIVERGED, FINISHED, RESULTS

GROUP = ["config_id", "data_digest", "code"]
SHOWN = ["arm", "batch_size", "lr", "clip"]
DISTINGUISHING = [
    "model",
    "data",
    "train_size",
    "clip_norm",
    "width",
    "steps",
    "epochs",
    "weight_decay",
    "role",
]  # shown only if the columns of SHOWN do not distinguish all groups
COMPUTE = {"seconds": "seconds", "samples": "samples_seen"}
MOST_READ = 60  # configurations that are read to distinguish groups with equal columns


@dataclass(frozen=True)
class Comparison:
    """Groups of trainings, ranked.

    The columns of `table`:

    - rank: 1 + the number of groups that are significantly better; NaN with one seed
    - tie: whether the group is indistinguishable from the best; true for the best if another group ties with it
    - arm, batch_size, lr, clip, and further settings if they are needed to distinguish the groups
    - seeds, failed, collapsed: numbers of trainings; failed is diverged or collapsed
    - mean, low, high: accuracy with its 95 % interval
    - minus_best, minus_best_low, minus_best_high: difference from the best group
    - interval: how that difference is computed, "paired" (by seed) or "Welch"
    - device_seconds: mean over the seeds
    - config_id: hash of the configuration

    Attributes:
        table: One row per group, the best first.
        rows: The trainings, with the columns `group` (an index of the table) and `accuracy`.
        metric: The compared accuracy, "val_acc" or "test_acc".
        warnings: Reasons why the groups are not comparable.
        notes: Help for reading the table.
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
    """Select trainings from the store and compare them.

    Args:
        store: The store.
        what: Names of studies, or first characters of run ids. Empty: all trainings.
        tags: Tags that a training must have, with their values.
        filter: An MLflow filter, as in `selection.pick`.
        role: "screen", "search" or "confirm".
        mode: "full" or "quick".
        equal: "seconds" or "samples". Compares at the largest compute that all trainings reached. None: at their ends.

    Raises:
        WorkbenchError: If the store does not know a name, or no training matches.
    """
    if equal is not None and equal not in COMPUTE:
        raise unknown("compute", equal, COMPUTE)
    rows = selection.pick(store, what, tags=tags, filter=filter, role=role, mode=mode)
    alike = look_alike(rows)
    configurations = {}
    if len(alike) <= MOST_READ:
        config_ids = rows.set_index("run_id").config_id
        configurations = {config_ids[run_id]: selection.configuration(store, run_id) for run_id in alike}
    notes = ["quick trainings are demonstrations, never evidence."] if mode == "quick" else []
    notes += selection.in_trash(store, mode)
    if equal is None:
        comparison = compare(rows, configurations)
        seen = comparison.rows[comparison.rows.outcome.isin(FINISHED)].samples_seen
        if len(seen) and seen.max() > 1.01 * seen.min():
            notes.append(
                f"the trainings saw from {seen.min():,.0f} to {seen.max():,.0f} samples. "
                "Use --equal samples or --equal seconds to compare at equal compute."
            )
    else:
        ended = rows[rows.status == "FINISHED"]
        rows, budget = at_equal_compute(ended, selection.curves(store, ended.run_id), equal)
        unit = "device seconds" if equal == "seconds" else "samples"
        notes.append(
            f"accuracy at {budget:,.4g} {unit}, the largest compute that all trainings reached. Longer trainings "
            "have not lowered their learning rate there as far as shorter ones."
        )
        comparison = compare(rows, configurations, metric="val_acc")
    return dataclasses.replace(comparison, notes=(*notes, *comparison.notes))


def compare(rows: pd.DataFrame, distinguish: dict[str, dict] | None = None, *, metric: str | None = None) -> Comparison:
    """Group and rank trainings.

    Args:
        rows: The trainings, with the columns of `selection.pick`.
        distinguish: Whole configurations by `config_id`, to name the differences of groups with equal columns.
        metric: The column to compare. None: `test_acc` if all trainings are confirmations on the test split, else
            `val_acc`.

    Raises:
        WorkbenchError: If no training has ended, or none has this metric.
    """
    rows = rows.assign(config_id=rows.config_id.where(rows.config_id != "", rows.run_id))  # a tag can be removed
    made_here = rows.seed.notna()  # MLflow's pages can make runs, too
    ended = rows[rows.outcome.isin(RESULTS) & (rows.status == "FINISHED") & made_here]
    notes = _left_out(rows, ended)
    if ended.empty:
        raise WorkbenchError(
            f"none of the {len(rows)} trainings has ended ({' '.join(notes).rstrip('.')}), so there is nothing to "
            "compare. Wait for one to end, or widen the selection."
        )
    repeated = ended.duplicated([*GROUP, "seed"])  # newest first
    if repeated.any():
        notes.append(
            f"{repeated.sum()} trainings are repetitions of others (same configuration and seed). "
            "Only the newest of each counts."
        )
    ended = ended[~repeated]
    metric = metric or _metric(ended)
    # A diverged training has no test accuracy. Its validation accuracy is that of guessing, which holds there as well.
    accuracy = ended[metric].where(ended[metric].notna() | (ended.outcome != DIVERGED), ended.val_acc)
    ended = ended.assign(accuracy=accuracy)
    if ended.accuracy.isna().any():
        notes.append(f"left out: {ended.accuracy.isna().sum()} trainings without {words(metric)}.")
        ended = ended[ended.accuracy.notna()]
    if ended.empty:
        raise WorkbenchError(f"no training has a {words(metric)}, so there is nothing to compare.")
    ended = ended.assign(group=ended.groupby(GROUP, sort=False).ngroup())
    order = ended.groupby("group").accuracy.mean().sort_values(ascending=False, kind="stable").index
    ended["group"] = ended.group.map({group: place for place, group in enumerate(order)})
    table = ranked(ended)
    table = _described(table, ended, distinguish or {})
    return Comparison(table, ended, metric, tuple(concerns(ended)), tuple(notes + _how_to_read(table)))


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank groups by accuracy.

    Two groups that share all seeds of the smaller one are compared by pairs, others by Welch's interval.

    Args:
        rows: One row per training: group (0 has the highest mean), seed, accuracy, failed, outcome, device_seconds.

    Returns:
        One row per group: seeds, failed, collapsed, mean, low, high, device_seconds, rank, tie, and the difference from
        the best.
    """
    over = rows.groupby("group")
    intervals = [accuracy_interval(values) for _, values in over.accuracy]
    groups = pd.DataFrame(
        {
            "seeds": over.size(),
            "failed": over.failed.sum().astype(int),
            "collapsed": over.outcome.agg(lambda outcomes: (outcomes == COLLAPSED).sum()),
            "mean": [i.mean for i in intervals],
            "low": [i.low for i in intervals],
            "high": [i.high for i in intervals],
            "device_seconds": over.device_seconds.mean(),
        }
    )
    by_seed = rows.pivot_table(index="seed", columns="group", values="accuracy").to_numpy()  # (seeds, groups)
    ranking = groups.index[groups.seeds > 1]
    better = pd.Series(0, index=groups.index)
    for group in ranking:
        _, low, _, _ = differences(by_seed, group)
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


def differences(by_seed: np.ndarray, reference: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Subtract every column from column `reference`, with 95 % intervals.

    A difference is paired if the two groups share all seeds of the smaller one, and at least two. Else its interval is
    Welch's. The interval is NaN if one of the groups has a single seed.

    Args:
        by_seed: Accuracies `(seeds, groups)`, NaN if a group does not have a seed.
        reference: Index of the column to subtract from.

    Returns:
        Mean, lower bound, upper bound, and whether the difference is paired, each `(groups,)`.
    """
    from scipy import stats

    n, column = np.isfinite(by_seed).sum(0), by_seed[:, [reference]]
    mean, variance = _moments(by_seed)
    shared = column - by_seed
    pairs = np.isfinite(shared).sum(0)
    paired = (pairs == np.minimum(n, n[reference])) & (pairs > 1)
    paired_mean, paired_variance = _moments(shared)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = variance / n
        squared = parts + parts[reference]
        freedom = squared**2 / (parts**2 / (n - 1) + parts[reference] ** 2 / (n[reference] - 1))
        freedom = np.where(paired, pairs - 1, np.where(squared > 0, freedom, n + n[reference] - 2))
        error = np.sqrt(np.where(paired, paired_variance / pairs, squared))
        middle = np.where(paired, paired_mean, mean[reference] - mean)
        half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    return middle, middle - half, middle + half, paired


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and unbiased variance of each column's finite values, NaN if too few."""
    finite, n = np.isfinite(values), np.isfinite(values).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(finite, values, 0).sum(0) / n
        return mean, np.where(n > 1, (np.where(finite, values - mean, 0) ** 2).sum(0) / (n - 1), np.nan)


def concerns(rows: pd.DataFrame) -> list[str]:
    """Return warnings about trainings that are not comparable.

    They cover different data, code, devices, numbers of training images, unknown ends, and mixed roles.
    """
    texts = []
    several = [
        ("data_digest", "data", "Accuracies on different images say nothing about the networks"),
        ("code", "code", "A difference may come from the code instead of the configuration"),
        ("device", "devices", "Device seconds are not comparable, and equal seeds do not give equal numbers"),
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
            texts.append(f"different {what}: {', '.join(labels)}{', ...' if len(counts) > 4 else ''}. {why}.")
    sizes = rows.train_size.map(lambda n: "all" if math.isnan(n) else f"{n:.0f}").value_counts()
    # Older versions stored no `train_size`. The code of those trainings differs, so the warning about code covers them.
    if rows.train_size.nunique() > 1 or (rows.groupby("code").train_size.nunique(dropna=False) > 1).any():
        labels = [f"{size} ({n} trainings)" for size, n in sizes.items()]
        texts.append(f"different numbers of training images: {', '.join(labels)}. More images alone raise accuracy.")
    texts += _unknown_ends(rows)
    if "search" in set(rows.role) and rows.role.nunique() > 1:
        texts.append(
            "mixed roles: trials of a search are among the trainings. The best of many trials looks better than it is, "
            "so select with --role."
        )
    if {"screen", "confirm"} <= set(rows.role):
        texts.append(
            "mixed roles: trainings that chose a setting are among those that confirm it. Chosen settings look better "
            "than they are, so select with --role."
        )
    return texts


def _unknown_ends(rows: pd.DataFrame) -> list[str]:
    """Warn about trainings that cannot be judged by the rule of workbench.outcomes."""
    unknown = int((rows.outcome.isin(FINISHED) & ~selection.measured(rows)).sum())
    what = f"unknown ends: {unknown} trainings have no validation loss or no number of classes"
    return [f"{what}. If one of them collapsed, it counts as complete."] if unknown else []


def at_equal_compute(rows: pd.DataFrame, curves: pd.DataFrame, by: str) -> tuple[pd.DataFrame, float]:
    """Read accuracies off the curves at the largest compute that every training reached.

    Between two evaluations the accuracy is interpolated linearly. Before the first evaluation it is NaN. A diverged
    training that ended before this compute counts as guessing.

    Args:
        rows: The trainings, with the columns of `selection.pick`.
        curves: Their evaluations, from `selection.curves`.
        by: The unit of compute: "seconds" (device seconds) or "samples".

    Returns:
        The trainings that ended with `val_acc` at equal compute, and that compute.

    Raises:
        WorkbenchError: If `by` is unknown, or no training went through all its steps.
    """
    if by not in COMPUTE:
        raise unknown("compute", by, COMPUTE)
    rows = rows[rows.outcome.isin(RESULTS) & (rows.status == "FINISHED")]
    x = COMPUTE[by]
    points = {run_id: curve.sort_values(x) for run_id, curve in curves.groupby("run_id")}
    complete = [run_id for run_id in rows.run_id[rows.outcome.isin(FINISHED)] if run_id in points]
    if not complete:
        raise WorkbenchError(
            "no training of the selection is complete or collapsed, so there is no common compute. Widen the selection."
        )
    budget = float(min(points[run_id][x].max() for run_id in complete))

    def accuracy(row) -> float:
        curve = points.get(row.run_id)
        if row.outcome == DIVERGED and (curve is None or curve[x].max() < budget):
            return row.val_acc
        return math.nan if curve is None else float(np.interp(budget, curve[x], curve.val_acc, left=math.nan))

    return rows.assign(val_acc=[accuracy(row) for row in rows.itertuples()]), budget


def look_alike(rows: pd.DataFrame) -> list[str]:
    """Return one run id of each group that has the same store columns as another group."""
    groups = rows[rows.status == "FINISHED"].drop_duplicates(GROUP)
    alike = groups.duplicated([*SHOWN, *DISTINGUISHING], keep=False)
    return list(groups.run_id[alike])


def words(metric: str) -> str:
    """Return the name of a metric in words."""
    return {"val_acc": "validation accuracy", "test_acc": "test accuracy"}.get(metric, metric)


def _metric(ended: pd.DataFrame) -> str:
    tested = (ended.role == "confirm") & (ended.test_acc.notna() | (ended.outcome == DIVERGED))
    return "test_acc" if tested.all() and ended.test_acc.notna().any() else "val_acc"


def _left_out(rows: pd.DataFrame, ended: pd.DataFrame) -> list[str]:
    rest = rows.drop(ended.index)
    state = rest.status.where(rest.outcome != "pruned", "PRUNED").str.lower()
    shown = {"finished": "without a result of the workbench", "killed": "interrupted", "failed": "broken"}
    counts = state.map(lambda s: shown.get(s, s)).value_counts()
    return [f"left out: {', '.join(f'{n} {what}' for what, n in counts.items())}."] if len(counts) else []


def _described(table: pd.DataFrame, rows: pd.DataFrame, distinguish: dict[str, dict]) -> pd.DataFrame:
    """Add the columns of `SHOWN` to the table, and further settings if they distinguish groups."""
    first = rows.groupby("group").first()
    known = pd.DataFrame([distinguish.get(config, {}) for config in first.config_id], index=first.index)
    first = first.join(known[[c for c in known if c not in first and c not in ("base_lr", "scale_lr")]])
    first["code"], first["data_digest"] = first.code.str[:8], first.data_digest.str[:8]
    columns = [*SHOWN, *(["data"] if first.data.nunique() > 1 else [])]
    as_text = first.map(lambda value: value if isinstance(value, str | float | int) else str(value))
    for name in [*DISTINGUISHING, *known.columns, "data_digest", "code"]:
        if name in as_text and name not in columns:
            kinds = as_text.groupby(columns, dropna=False)[name].nunique(dropna=False)
            columns += [name] if kinds.max() > 1 else []
    front = ["rank", "tie"]
    return pd.concat([table[front], first[columns], table.drop(columns=front), first[["config_id"]]], axis=1)


def _how_to_read(table: pd.DataFrame) -> list[str]:
    notes = []
    alone = int((table.seeds < 2).sum())
    if alone == len(table):
        notes.append("every group has one seed, so there are no intervals and no ranks. Groups are sorted by accuracy.")
    elif alone:
        notes.append(f"{alone} of {len(table)} groups have one seed, so they have no interval and no rank.")
    if len(table) > alone:
        notes.append("rank: 1 + the number of groups that are significantly better.")
    if table.tie.any():
        notes.append(
            f"tie: {int(table.tie.sum())} groups, including the best. The 95 % interval of their difference from the "
            "best contains 0, and more seeds make it narrower."
        )
    if len(table) > 20:
        notes.append(f"each interval has a level of 95 %, so among {len(table)} groups some differ by chance.")
    return notes
