"""Selection of trainings by study, tag, filter, role or run id, as one tidy table.

Selecting reads only the columns of the store. `curves` and `configuration` also read a file of each training.
"""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from workbench.bars import counted
from workbench.errors import WorkbenchError, unknown
from workbench.lab.statistics.failure_line import at_line
from workbench.lab.store.client import UNREACHABLE, Store, is_away
from workbench.lab.store.patience import damage_message
from workbench.outcomes import CLASSES, FAILURES, FINISHED, RESULTS

ROLES = ("screen", "search", "confirm")
TAGS = {"arm": "", "role": "", "outcome": "", "cause": "", "config_id": "", "key": "", "code": "", "device": ""}
TEXTS = ("model", "data")  # parameters that are words
NUMBERS = ("batch_size", "lr", "clip", "clip_norm", "weight_decay", "steps", "epochs", "train_size", "width", "seed")
METRICS = (
    "val_acc", "test_acc", "train_loss", "val_loss", "classes", "failed", "failed_at_step", "samples_seen",
    "device_seconds",
)  # fmt: skip
COLUMNS = ("run_id", "name", "status", *TAGS, "data_digest", *TEXTS, *NUMBERS, *METRICS)
CURVE = ("run_id", "step", "samples_seen", "seconds", "val_acc")
FIELD = re.compile(r"\b(metrics?|params?|parameters?|tags?)\.(`[^`]+`|\"[^\"]+\"|[\w.\-/]+)")


def pick(
    store: Store,
    what: Iterable[str] = (),
    *,
    tags: dict[str, str] | None = None,
    filter: str | None = None,
    role: str | None = None,
    mode: str = "full",
) -> pd.DataFrame:
    """Select trainings from the store.

    Args:
        store: The store.
        what: Names of studies, or first characters of run ids. Empty: all trainings.
        tags: Tags that a training must have, with their values.
        filter: An MLflow filter, such as "params.batch_size = '256' and metrics.val_acc > 0.5".
        role: "screen", "search" or "confirm".
        mode: "full" or "quick".

    Returns:
        One row per training, newest first, with the columns `COLUMNS`: tags, parameters and final metrics.

    Raises:
        WorkbenchError: If the store does not know a name, MLflow cannot read the filter, or no training matches.
    """
    if role is not None and role not in ROLES:
        raise unknown("role", role, ROLES)
    for name, value in (tags or {}).items():
        if "`" in name or "'" in value:
            raise WorkbenchError(f"the tag {name}={value} must not contain quotes. Use --filter instead.")
    terms = [f"tags.`{name}` = '{value}'" for name, value in (tags or {}).items()]
    terms += [f"tags.role = '{role}'"] if role else []
    terms += [filter.strip()] if filter and filter.strip() else []
    runs_by_id = {}
    for name in list(what) or [None]:
        study_terms = [] if name is None else [_study_term(name)]
        runs = _search(store, mode, [*study_terms, *terms])
        if not runs and name is not None and not _search(store, mode, study_terms):
            runs = _search(store, mode, [_run_id_term(store, name, mode), *terms])
        runs_by_id |= {run.id: run for run in runs}
    if not runs_by_id:
        raise _no_match(store, mode, tags or {}, terms)
    return table(runs_by_id.values())


def in_trash(store: Store, mode: str) -> list[str]:
    """Say in at most one sentence how many finished trainings somebody deleted in MLflow."""
    runs = [run.id[:8] for run in store.deleted("trainings", mode) if run.status == "FINISHED"]
    shown = ", ".join(runs[:12]) + (", ..." if len(runs) > 12 else "")
    return [f"left out: {len(runs)} trainings in MLflow's trash ({shown}). Restore them there."] if runs else []


def table(runs: Iterable) -> pd.DataFrame:
    """Return the runs of trainings as a tidy table. A number that a run does not have is NaN.

    Outcomes are judged again where loss and classes are known, so that old and new runs follow the same rule.
    """
    rows = []
    for run in runs:
        tags, params, metrics = run.tags, run.parameters, run.metrics
        row = {"run_id": run.id, "name": run.name, "status": run.status}
        row |= {name: tags.get(name, missing) for name, missing in TAGS.items()}
        row |= {"data_digest": tags.get("data", "")} | {name: params.get(name, "") for name in TEXTS}
        row |= {name: params.get(name) for name in NUMBERS} | {name: metrics.get(name) for name in METRICS}
        rows.append(row)
    tidy = pd.DataFrame(rows, columns=list(COLUMNS))
    for name in (*NUMBERS, *METRICS):
        tidy[name] = pd.to_numeric(tidy[name], errors="coerce").astype(float)
    tidy = pd.concat([at_line(tidy[measured(tidy)]), tidy[~measured(tidy)]]).sort_index()
    failed = tidy.outcome.isin(FAILURES).astype(float)
    return tidy.assign(failed=failed.where(tidy.outcome.isin(RESULTS), tidy.failed))


def measured(rows: pd.DataFrame) -> pd.Series:
    """Return which trainings went through all their steps, with a validation loss and a known number of classes."""
    known = rows.classes.notna() | rows.data.isin(CLASSES)
    return rows.outcome.isin(FINISHED) & rows.val_loss.notna() & known


def curves(store: Store, run_ids: Sequence[str]) -> pd.DataFrame:
    """Read the evaluations of trainings, one file per training.

    Returns:
        One row per evaluation: run_id, step, samples_seen, seconds, val_acc. A training that diverged before its first
        evaluation has no row.
    """
    rows = []
    for run_id in counted(run_ids, desc="curves", unit="run"):
        for row in store.read_result(run_id).history:
            rows.append({"run_id": run_id} | {name: row.get(name) for name in CURVE[1:]})
    return pd.DataFrame(rows, columns=list(CURVE)).astype(dict.fromkeys(CURVE[1:], float))


def configuration(store: Store, run_id: str) -> dict:
    """Return a training's configuration, with the network's arguments as `model_args.<name>`."""
    config = dict(store.read_result(run_id).config)
    arguments = config.pop("model_args", None) or {}
    return config | {f"model_args.{name}": value for name, value in arguments.items()}


def is_beginning(text: str) -> bool:
    """Return whether a text can be the beginning of a run id."""
    return bool(text) and set(text.lower()) <= set("0123456789abcdef")


def studies(store: Store, mode: str = "full") -> list[str]:
    """Return the names of the studies that have executions in the store."""
    return sorted({run.tags.get("study", "") for run in store.search("studies", mode)} - {""})


def _study_term(name: str) -> str:
    if "`" in name:
        raise WorkbenchError(f"the study name {name} must not contain backquotes.")
    return f"tags.`study.{name}` LIKE '%'"


def _run_id_term(store: Store, text: str, mode: str) -> str:
    """Return the filter for the training whose run id begins with a text.

    Raises:
        WorkbenchError: If no training or several match. Without a match the message names the nearest study.
    """
    term = f"attributes.run_id ILIKE '{text}%'"
    runs = store.search("trainings", mode, term) if is_beginning(text) else []
    if len(runs) > 1:
        shown = ", ".join(sorted(run.id for run in runs)[:5])
        raise WorkbenchError(f"{len(runs)} run ids begin with {text}: {shown}. Give more of the run id.")
    if not runs:
        known = studies(store, mode)
        other = "quick" if mode == "full" else "full"
        if text in studies(store, other):
            cure = "Add --quick to compare them" if other == "quick" else "Leave --quick out to compare them"
            raise WorkbenchError(f"study '{text}' has only {other} trainings in the store. {cure}.")
        if not known:
            raise _no_match(store, mode, {}, [])
        raise unknown("study or training", text, known)
    return term


def _search(store: Store, mode: str, terms: list[str]) -> list:
    text = " and ".join(terms)
    try:
        return store.search("trainings", mode, text)
    except UNREACHABLE as error:
        if is_away(error) or damage_message(error) or not terms:
            raise
        cause = str(error).removeprefix("INVALID_PARAMETER_VALUE: ").splitlines()[0]
        raise WorkbenchError(
            f"cannot read the filter {terms[-1]} ({cause}). Write it like \"params.batch_size = '256' and "
            'metrics.val_acc > 0.5", with `and` but without `or`.'
        ) from None


def _no_match(store: Store, mode: str, tags: dict[str, str], terms: list[str]) -> WorkbenchError:
    """Say why no training matches: an empty store, or an unknown name or value."""
    runs = store.search("trainings", mode)
    which = "quick trainings" if mode == "quick" else "trainings"
    if not runs and (deleted := in_trash(store, mode)):
        return WorkbenchError(f"the store has no {which}, {deleted[0]}")
    if not runs:
        return WorkbenchError(
            f"the store has no {which} yet. Run `workbench study large_batch{' --quick' if mode == 'quick' else ''}` "
            "to make some."
        )
    for name, value in tags.items():
        values = {run.tags[name] for run in runs if name in run.tags}
        if values and value not in values:
            return unknown(f"value of the tag {name}", value, values)
    parts = {"metric": "metrics", "param": "parameters", "tag": "tags"}
    for kind, quoted in FIELD.findall(" ".join(terms)):
        kind, name = next(part for part in parts if kind.startswith(part)), quoted.strip('`"')
        known = {name for run in runs for name in getattr(run, parts[kind])}
        if name not in known:
            return unknown(kind, name, known)
    return WorkbenchError(f"none of {len(runs)} {which} matches {' and '.join(terms)}. Widen the selection.")
