"""Search over hyperparameters, with Optuna: persistent, pruned, resumable. No other file knows Optuna.

The sampler is rebuilt before every suggestion with a seed of (search seed, slot), where the slot counts the trials
that are complete or pruned: a killed trial gives its slot and its parameters back, and a resumed search never repeats
a suggestion. A diverged training is an infeasible point (a constraint), not a bad number. Only the validation split
is seen.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from workbench.data.augment import seed_for
from workbench.errors import WorkbenchError
from workbench.lab import events
from workbench.lab.parameters import Range
from workbench.lab.processes import is_held
from workbench.lab.session import Session
from workbench.lab.store import runs_folder
from workbench.lab.trainings import check, run_training
from workbench.training import TrainConfig, training_key
from workbench.training.inputs import source_digest

optuna.logging.set_verbosity(optuna.logging.WARNING)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class SearchResult:
    """`trials` has one row a trial, its columns those of `run_all` and trial, state; `best` is the feasible row with
    the best val_acc."""

    trials: pd.DataFrame
    importance: dict[str, float]

    @property
    def best(self) -> pd.Series | None:
        feasible = self.trials[(self.trials.state == "COMPLETE") & (self.trials.failed == 0)]
        if feasible.empty:
            feasible = self.trials[(self.trials.state == "COMPLETE") & (self.trials.outcome == "complete")]
        return None if feasible.empty else feasible.loc[feasible.val_acc.idxmax()]


def search(
    objective: Callable[[dict[str, float]], TrainConfig],
    space: dict[str, dict | Range | float],
    *,
    trials: int,
    session: Session,
    seed: int = 0,
    arm: str = "search",
    start: list[dict[str, float]] | None = None,
) -> SearchResult:
    """Maximises validation accuracy over `space`, whose entries are ranges ({low, high, log}) or fixed numbers.

    Args: `objective` maps a point to the training that judges it; `start` are points to try first. The search
    continues where an earlier one with the same space, training, data and code stopped.
    """
    ranges = {name: _as_range(value) for name, value in space.items() if not isinstance(value, int | float)}
    fixed = {name: float(value) for name, value in space.items() if name not in ranges}
    if trials < 1:
        raise WorkbenchError(f"`trials` (={trials}) must be at least 1.")
    corner = objective(fixed | {name: r.low for name, r in ranges.items()})
    check(corner)
    identity = (
        training_key(corner, source_digest(corner)),
        sorted((n, r.low, r.high, r.log) for n, r in ranges.items()),
        fixed,
        seed,
        session.mode,
    )
    name = f"{session.study} {arm} {hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"

    with filelock.FileLock(search_lock(name)):
        study = _open(name)
        for trial in _trials(study, TrialState.RUNNING):  # left by a killed process, since we hold the lock
            study.tell(trial.number, state=TrialState.FAIL)
        bar = tqdm(total=trials, initial=_done(study), desc=f"search: {arm}", unit="trial", disable=events.listening())
        while (slot := _done(study)) < trials:
            _one_trial(
                study, slot, objective, ranges, fixed, (start or [])[slot : slot + 1], seed, trials, session, arm
            )
            bar.update()
        bar.close()
        found = _trials(study, *DONE)
    for trial in found:
        session.store.tag_study(trial.user_attrs["row"]["run_id"], session.study, session.run_id)
    table = pd.DataFrame([{"trial": i, "state": t.state.name, **t.user_attrs["row"]} for i, t in enumerate(found)])
    return SearchResult(table, _importance(study))


def _open(name: str) -> optuna.Study:
    with filelock.FileLock(runs_folder() / ".optuna.lock"):  # two processes that make the file at once would collide
        return optuna.create_study(
            storage=f"sqlite:///{runs_folder() / 'optuna.db'}",
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )


def _one_trial(study, slot, objective, ranges, fixed, start, seed, trials, session, arm) -> None:
    study.sampler = optuna.samplers.TPESampler(
        seed=seed_for(seed, "trial", slot) % 2**32, n_startup_trials=max(4, trials // 3)
    )
    if start and not _trials(study, TrialState.WAITING):
        study.enqueue_trial({n: v for n, v in start[0].items() if n in ranges})
    trial = study.ask({n: optuna.distributions.FloatDistribution(r.low, r.high, log=r.log) for n, r in ranges.items()})
    config = objective(fixed | trial.params)

    def watch(row: dict) -> bool:
        trial.report(row["val_acc"], row["step"])
        return trial.should_prune()

    run_id, result, _ = run_training(config, session, role="search", arm=arm, position=(slot, trials), watch=watch)
    trial.set_user_attr("row", {"arm": arm, **result.row(), "run_id": run_id})
    if result.outcome == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_constraint("failed", 1.0 if result.outcome == "diverged" else -1.0)
        study.tell(trial, result.metrics["val_acc"])


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def _done(study: optuna.Study) -> int:
    return len(_trials(study, *DONE))


def _as_range(value: dict | Range) -> Range:
    return value if isinstance(value, Range) else Range(**value)


def _importance(study: optuna.Study) -> dict[str, float]:
    """The share of the variance of accuracy that each parameter accounts for; empty where too few trials completed."""
    complete = _trials(study, TrialState.COMPLETE)
    if len(complete) < 4 or len({t.value for t in complete}) < 2 or len(complete[0].params) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))


# ---- what a crash left


def search_lock(name: str) -> Path:
    """The file that is locked while a search runs."""
    return runs_folder() / "locks" / f"{name.replace('/', '_')}.search.lock".replace(" ", "-")


def abandoned_trials() -> list[tuple[str, int]]:
    """(search, number) of each trial that says RUNNING though no search that could run it does."""
    database = runs_folder() / "optuna.db"
    if not database.is_file():
        return []
    storage = f"sqlite:///{database}"
    found = []
    for name in optuna.get_all_study_names(storage):
        if not is_held(search_lock(name)):
            study = optuna.load_study(study_name=name, storage=storage)
            found += [(name, trial.number) for trial in _trials(study, TrialState.RUNNING)]
    return found


def give_up_trial(name: str, number: int) -> None:
    """Marks an abandoned trial FAIL, so that its slot and its parameters go to the next.

    Raises: filelock.Timeout where the search has begun again.
    """
    with filelock.FileLock(search_lock(name), timeout=0):
        study = optuna.load_study(study_name=name, storage=f"sqlite:///{runs_folder() / 'optuna.db'}")
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
