"""Differences between two trainings, two groups of seeds, or two executions of a notebook.

`diff(store, a, b)` takes run ids, the first characters of run ids, or the `config_id` of a group. `workbench compare`
prints the `config_id` of every group.
"""

from dataclasses import dataclass

import pandas as pd

from workbench.errors import WorkbenchError, unknown
from workbench.lab.compare import selection
from workbench.lab.compare.table import concerns
from workbench.lab.statistics.intervals import Interval, paired_interval, t_interval
from workbench.lab.store.client import Store

MODES = ("full", "quick")
NOT_COMPARED = ("seed", "device", "workers", "progress")  # the seed has its own row, the others change no result
RESULTS = ("val_acc", "test_acc", "train_loss", "failed", "device_seconds", "images_per_second", "samples_seen")
RESULTS += ("clipped_share", "peak_memory")


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: The run id, or "group" and the `config_id`.
        kind: "training", "group" or "execution".
        mode: "full" or "quick".
        runs: The store's runs. Only a group has several.
    """

    name: str
    kind: str
    mode: str
    runs: list

    def rows(self) -> pd.DataFrame:
        """Return the trainings in the format of `selection.table`."""
        return selection.table(self.runs)


@dataclass(frozen=True)
class Diff:
    """Differences between two sides.

    Attributes:
        a: The first side.
        b: The second side.
        settings: The settings that differ, with the columns what, a, b. They cover configuration, code, data, device
            and versions of trainings, or the parameters of notebooks.
        results: The results of both sides, with the same columns.
        seeds: The seeds that two groups share, with the columns seed, a, b, difference. None without a group.
        metric: The accuracy in `seeds`: `test_acc` where all trainings have one, else `val_acc`.
        interval: The interval of a minus b, paired by seed. None without a group.
        warnings: Reasons why the comparison is unfair, from `table.concerns`.
    """

    a: Side
    b: Side
    settings: pd.DataFrame
    results: pd.DataFrame
    seeds: pd.DataFrame | None = None
    metric: str = "val_acc"
    interval: Interval | None = None
    warnings: tuple[str, ...] = ()


def diff(store: Store, a: str, b: str) -> Diff:
    """Compare two trainings, groups or executions.

    Args:
        store: The store that holds both.
        a: A run id, the first characters of one, or a group's `config_id`.
        b: The other one.

    Raises:
        WorkbenchError: If a name is unknown or ambiguous, a training has no result, or one side is an execution and
            the other is not.
    """
    left, right = resolve(store, a), resolve(store, b)
    if (left.kind == "execution") != (right.kind == "execution"):
        raise WorkbenchError(
            f"cannot compare {_kind_name(left.kind)} ({a}) with {_kind_name(right.kind)} ({b}). "
            "Give two trainings or groups, or two notebook executions."
        )
    return _executions(store, left, right) if left.kind == "execution" else _trainings(store, left, right)


def resolve(store: Store, text: str) -> Side:
    """Find a training, execution or group by run id, beginning of a run id, or `config_id`.

    Raises:
        WorkbenchError: If the text matches nothing, or several things.
    """
    matches: dict[tuple[str, str, str], list] = {}
    if selection.is_beginning(text):
        for mode in MODES:
            group = store.search(
                "trainings", mode, f"tags.config_id = '{text.lower()}' and attributes.status = 'FINISHED'"
            )
            if group:
                matches[f"group {text}", "group", mode] = group
            for experiment, kind in (("trainings", "training"), ("studies", "execution")):
                for run in store.search(experiment, mode, f"attributes.run_id ILIKE '{text}%'"):
                    matches[run.id, kind, mode] = [run]
    if not matches:
        ids = [run.id for mode in MODES for kind in ("trainings", "studies") for run in store.search(kind, mode)]
        raise unknown("run or group of seeds", text, ids)
    if len(matches) > 1:
        shown = ", ".join(f"{name} ({kind})" for name, kind, _ in list(matches)[:5])
        raise WorkbenchError(
            f"{text} is ambiguous, it matches {len(matches)} runs or groups: {shown}. Give more of the run id."
        )
    ((name, kind, mode), runs) = next(iter(matches.items()))
    return Side(name, kind, mode, runs)


def _trainings(store: Store, a: Side, b: Side) -> Diff:
    for side in (a, b):
        if side.runs[0].status != "FINISHED":
            cause = side.runs[0].tags.get("cause", "it may still run")
            raise WorkbenchError(
                f"run {side.name} must be FINISHED, got {side.runs[0].status} ({cause}). "
                "It has no result to compare, so choose another run."
            )
    rows = [_newest_per_seed(side.rows()) for side in (a, b)]
    configs = [selection.configuration(store, side_rows.run_id.iloc[0]) for side_rows in rows]
    for config in configs:
        for name in NOT_COMPARED:
            config.pop(name, None)
    provenance = [_provenance(store, side, side_rows) for side, side_rows in zip((a, b), rows, strict=True)]
    settings = _differing(*configs, provenance[0], provenance[1])
    results = _side_by_side(*(_results(side.runs, side_rows) for side, side_rows in zip((a, b), rows, strict=True)))
    tested = all(side_rows.test_acc.notna().all() for side_rows in rows)
    metric = "test_acc" if tested else "val_acc"
    seeds, interval = None, None
    if "group" in (a.kind, b.kind):
        by_seed = [side_rows.set_index("seed")[metric] for side_rows in rows]
        shared = sorted(set(by_seed[0].index) & set(by_seed[1].index))
        seeds = pd.DataFrame({"seed": shared, "a": by_seed[0][shared].array, "b": by_seed[1][shared].array})
        seeds["difference"] = seeds.a - seeds.b
        interval = paired_interval(seeds.a, seeds.b)
    return Diff(a, b, settings, results, seeds, metric, interval, tuple(concerns(pd.concat(rows))))


def _newest_per_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the trainings with the newest code and data, and of each seed the newest."""
    newest = rows[(rows.code == rows.code.iloc[0]) & (rows.data_digest == rows.data_digest.iloc[0])]
    return newest.drop_duplicates("seed").sort_values("seed")


def _provenance(store: Store, side: Side, rows: pd.DataFrame) -> dict:
    result = store.read_result(rows.run_id.iloc[0])
    seeds = ", ".join(f"{seed:g}" for seed in rows.seed)
    versions = {f"version of {name}": value for name, value in result.versions.items()}
    device = ", ".join(sorted(set(rows.device)))
    return {
        "seed": seeds,
        "peak lr": rows.lr.iloc[0],
        "arm": rows.arm.iloc[0],
        "role": rows.role.iloc[0],
        "mode": side.mode,
        "code": rows.code.iloc[0],
        "data digest": rows.data_digest.iloc[0],
        "device": device,
        **versions,
    }


def _results(runs: list, rows: pd.DataFrame) -> dict:
    """Return the final metrics: plain values for one training, mean and interval for a group."""
    kept_runs = [run for run in runs if run.id in set(rows.run_id)]
    outcomes = rows.outcome.value_counts()
    results = {"outcome": ", ".join(f"{n} {o}" for o, n in outcomes.items()) if len(rows) > 1 else rows.outcome.iloc[0]}
    for name in RESULTS:
        values = [run.metrics[name] for run in kept_runs if name in run.metrics]
        if name == "failed":
            results[name] = f"{rows.failed.sum():.0f} of {len(rows)}" if len(rows) > 1 else rows.failed.iloc[0]
        elif values:
            results[name] = f"{t_interval(values):.4g}" if len(rows) > 1 else values[0]
    return results


def _executions(store: Store, a: Side, b: Side) -> Diff:
    runs = [side.runs[0] for side in (a, b)]
    keys = ("study", "mode", "by", "mlflow.source.git.commit", "python", "torch")
    provenance = []
    for run in runs:
        tags = {k.removeprefix("mlflow.source."): v for k, v in run.tags.items() if k in keys}
        provenance.append(tags | {k: v[:16] for k, v in run.tags.items() if k.startswith("key.")})
    results = []
    for run in runs:
        results.append(
            {
                "status": run.status,
                "claim": run.tags.get("answer", "none"),
                "verdict": run.tags.get("verdict", "none"),
                "effect": run.tags.get("effect", "none"),
            }
        )
    return Diff(a, b, _differing(*(run.parameters for run in runs), *provenance), _side_by_side(*results))


def _differing(a: dict, b: dict, provenance_a: dict, provenance_b: dict) -> pd.DataFrame:
    """Return the differing settings: first the configuration, then the provenance."""
    both = _side_by_side(dict(a), dict(b)), _side_by_side(provenance_a, provenance_b)
    table = pd.concat(both, ignore_index=True)
    return table[[x != y for x, y in zip(table.a, table.b, strict=True)]].reset_index(drop=True)


def _side_by_side(a: dict, b: dict) -> pd.DataFrame:
    names = [*a, *(name for name in b if name not in a)]
    return pd.DataFrame([{"what": n, "a": _text(a, n), "b": _text(b, n)} for n in names], columns=["what", "a", "b"])


def _text(values: dict, name: str) -> str:
    value = values.get(name, "")
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _kind_name(kind: str) -> str:
    return {"training": "a training", "group": "a group of seeds", "execution": "a notebook execution"}[kind]
