"""Search over hyperparameters with Optuna: persistent, pruned, resumable.

No other file imports Optuna. Before each suggestion the sampler is rebuilt with a seed of (search seed, slot). The slot
is the number of trials that are complete, pruned or running. So a killed trial gives its slot and parameters back, and
a resumed search never repeats a suggestion. One process asks the sampler, however many train. A training that diverged
or collapsed is an infeasible point (a constraint), not a bad number. Only the validation split is used.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from workbench import environment
from workbench.data.augment import seed_for
from workbench.errors import WorkbenchError, disk_error_message, unknown
from workbench.lab.executors import Choice
from workbench.lab.executors.lifetime import is_held
from workbench.lab.jobs.engines import is_planning
from workbench.lab.jobs.job import Arm, Job, JobResult, table_of
from workbench.lab.jobs.run_all import Progress, check, trained
from workbench.lab.store.database import make_whole, sqlite_uri, with_driver, without_password
from workbench.lab.store.locations import folder_of, runs_folder
from workbench.lab.store.locks import locked
from workbench.lab.store.patience import damage_message
from workbench.lab.studies.parameters import Range
from workbench.lab.studies.session import Session
from workbench.outcomes import COMPLETE, FAILURES, PRUNED
from workbench.training import TrainConfig, training_key
from workbench.training.first_batch import check_networks
from workbench.training.inputs import source_digest

optuna.logging.set_verbosity(optuna.logging.WARNING)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
WAVE = 8  # trials of one plan, once the sampler has results


@dataclass(frozen=True)
class SearchResult:
    """Result of `search`.

    Attributes:
        trials: One row per trial: the columns of `run_all`, trial and state.
        importance: Share of the variance of accuracy by parameter.
    """

    trials: pd.DataFrame
    importance: dict[str, float]

    @property
    def best(self) -> pd.Series | None:
        """The feasible row with the best val_acc. None: no trial is feasible."""
        feasible = self.trials[self.trials.outcome == COMPLETE]
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
    executor: Choice | str | None = None,
) -> SearchResult:
    """Maximise validation accuracy over a space.

    The search continues where an earlier one with the same space, training, data and code stopped.

    Args:
        objective: Maps a point to the training that judges it.
        space: By parameter a range {low, high, log} or a fixed number.
        trials: Number of trials, those of an earlier search included.
        session: Where the trials run and are kept.
        seed: Seed of the sampler.
        arm: Label of the trials.
        start: Points to try first.
        executor: Such as "processes:4". None: WORKBENCH_EXECUTOR, else this process.

    Returns:
        The trials, the best one, and the importance of the parameters.

    Raises:
        WorkbenchError: If `trials` is below 1, `start` has an unknown name, or the database cannot be opened.
        RuntimeError: If trials broke, after the others are done and kept. The next start tries them again.
    """
    ranges = {name: _as_range(value) for name, value in space.items() if not isinstance(value, int | float)}
    fixed = {name: float(value) for name, value in space.items() if name not in ranges}
    if trials < 1:
        raise WorkbenchError(f"`trials` must be at least 1, got {trials}.")
    for name in {name for point in start or () for name in point}:
        if name not in space:
            raise unknown("name of a point in `start`", name, space)
    corner = objective(fixed | {name: r.low for name, r in ranges.items()})
    check(corner)
    check_networks([corner])
    identity = (
        training_key(corner, source_digest(corner)),
        sorted((n, r.low, r.high, r.log) for n, r in ranges.items()),
        fixed,
        seed,
        session.mode,
    )
    name = f"{session.study} {arm} {hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"

    with locked(search_lock(name), f"the search '{name}'"):
        asking = _AskAndTell(_open(name), ranges, fixed, seed, trials, start or [])
        asking.give_back()
        limit = trials
        if is_planning():  # the sampler needs results to suggest many trials
            limit = min(trials, asking.taken() + max(asking.startup - asking.taken(), WAVE))
        lost = [trial for trial in asking.done() if not session.store.is_kept(asking.row(trial)["run_id"])]
        jobs = itertools.chain(asking.repeated(lost, objective, arm), asking.jobs(objective, arm, limit))
        with Progress(f"search: {arm}", trials, asking.taken() - len(lost)) as progress:
            try:
                for result in trained(jobs, session, executor=executor, progress=progress):
                    asking.tell(result)
            finally:
                asking.give_back()  # the search was left early, or only planned
        ended = asking.done()
    if asking.broken:
        raise RuntimeError(f"{len(asking.broken)} trials broke. The others are kept:\n" + "\n".join(asking.broken))
    for trial in ended:
        session.store.tag_study(asking.row(trial)["run_id"], session.study, session.run_id)
    table = table_of([{"trial": i, "state": t.state.name, **asking.row(t)} for i, t in enumerate(ended)])
    return SearchResult(table, _importance(asking.study))


class _AskAndTell:
    """Asks the sampler for trials and reports their results, in one process per search."""

    def __init__(self, study: optuna.Study, ranges, fixed, seed: int, trials: int, start: list[dict]):
        self.study, self._ranges, self._fixed, self._seed, self._start = study, ranges, fixed, seed, start
        self.startup = max(4, trials // 3)
        self.broken: list[str] = []
        self._trials: dict[Job, optuna.Trial] = {}
        self._repeated: dict[Job, FrozenTrial] = {}

    def give_back(self) -> None:
        """Free slots and parameters of the trials that a killed process left. Needs the search lock."""
        abandoned = _trials(self.study, TrialState.RUNNING)
        for trial in sorted(abandoned, key=lambda t: t.user_attrs.get("slot", t.number)):
            _give_back(self.study, trial)

    def taken(self) -> int:
        """Count the slots in use: trials complete, pruned or running, and those broken this time."""
        return len(_trials(self.study, *DONE, TrialState.RUNNING)) + len(self.broken)

    def jobs(self, objective: Callable, arm: str, limit: int) -> Iterator[Job]:
        """Yield the job of the next trial, until `limit` slots are in use."""
        while (slot := self.taken()) < limit:
            trial = self._ask(slot)

            def watch(row: dict, trial=trial) -> bool:
                if row["step"] not in self.study.trials[trial.number].intermediate_values:
                    trial.report(row["val_acc"], row["step"])
                return trial.should_prune()

            job = Job(Arm(arm, objective(self._fixed | trial.params)), "search", watch=watch)
            self._trials[job] = trial
            yield job

    def repeated(self, lost: list[FrozenTrial], objective: Callable, arm: str) -> Iterator[Job]:
        """Yield the jobs of trials whose runs the store has no longer. Each ends at the same step as before."""
        for trial in lost:

            def watch(row: dict, trial=trial) -> bool:
                return trial.state == TrialState.PRUNED and row["step"] >= trial.last_step

            job = Job(Arm(arm, objective(self._fixed | trial.params)), "search", watch=watch)
            self._repeated[job] = trial
            yield job

    def row(self, trial: FrozenTrial) -> dict:
        """Return the row of a trial that ended."""
        return _row(self.study, trial)

    def _ask(self, slot: int) -> optuna.Trial:
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed_for(self._seed, "trial", slot) % 2**32, n_startup_trials=self.startup
        )
        if not _trials(self.study, TrialState.WAITING):
            point = (self._start[slot : slot + 1] or [{}])[0]
            if point:
                self.study.enqueue_trial({n: v for n, v in point.items() if n in self._ranges})
        distributions = {
            n: optuna.distributions.FloatDistribution(r.low, r.high, log=r.log) for n, r in self._ranges.items()
        }
        trial = self.study.ask(distributions)
        if "slot" not in trial.user_attrs:
            trial.set_user_attr("slot", slot)
        return trial

    def tell(self, result: JobResult) -> None:
        """Report the result of a trial to the sampler."""
        trial = self._trials.pop(result.job, None) or self._repeated[result.job]
        if result.error is not None:
            if result.job not in self._repeated:
                self.study.tell(trial, state=TrialState.FAIL)
            self.broken.append(f"{result.job.name}: {result.broken}")
            return
        if result.job in self._repeated:  # Optuna changes no trial that ended
            self.study.set_user_attr(f"row {trial.number}", result.row())
            return
        trial.set_user_attr("row", result.row())
        if result.result.outcome == PRUNED:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_constraint("failed", 1.0 if result.result.outcome in FAILURES else -1.0)
            self.study.tell(trial, result.result.metrics["val_acc"])

    def done(self) -> list[FrozenTrial]:
        """Return the trials that ended, by slot."""
        return sorted(_trials(self.study, *DONE), key=lambda t: t.user_attrs.get("slot", t.number))


def storage_uri() -> str:
    """Return WORKBENCH_OPTUNA_STORAGE (postgresql://...), else the sqlite file under mlruns/."""
    return environment.text("WORKBENCH_OPTUNA_STORAGE") or sqlite_uri(runs_folder() / "optuna.db")


def search_lock(name: str) -> Path:
    """Return the file that is locked while a search runs."""
    return folder_of("locks") / f"{name.replace('/', '_')}.search.lock".replace(" ", "-")


def _storage() -> optuna.storages.RDBStorage:
    uri = storage_uri()
    options = {} if uri.startswith("sqlite") else {"pool_pre_ping": True}
    with locked(
        runs_folder() / ".optuna.lock", "the searches"
    ):  # two processes must not create the file at the same time
        try:
            make_whole(uri, lambda part: optuna.storages.RDBStorage(part).engine.dispose())
            return optuna.storages.RDBStorage(with_driver(uri), engine_kwargs=options)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError, ValueError) as error:
            cure = "Start its server, or correct WORKBENCH_OPTUNA_STORAGE, or unset it to use the file under mlruns/"
            if uri.startswith("sqlite"):
                if disk_error_message(error):
                    raise
                if damage := damage_message(error):
                    raise WorkbenchError(f"cannot open the searches: {damage}") from error
                cure = "Move the file away to get a new one; the trainings are kept, and found again"
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise WorkbenchError(f"cannot open the database {without_password(uri)} ({cause}). {cure}.") from error


def _open(name: str) -> optuna.Study:
    storage = _storage()
    with locked(runs_folder() / ".optuna.lock", "the searches"):
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )


def _give_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a trial without a process. Its slot and its parameters go to the next trial."""
    slot = trial.user_attrs.get("slot")
    # The slot waits already if a process was killed between the next two calls. A trial without a slot was killed
    # during its suggestion.
    waiting = {t.user_attrs.get("slot") for t in _trials(study, TrialState.WAITING)}
    if slot is not None and slot not in waiting:
        study.enqueue_trial(trial.params, user_attrs={"slot": slot})
    study.tell(trial.number, state=TrialState.FAIL)


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states)


def _row(study: optuna.Study, trial: FrozenTrial) -> dict:
    """Return the row of a trial that ended, of its newest training."""
    return study.user_attrs.get(f"row {trial.number}") or trial.user_attrs["row"]


def _as_range(value: dict | Range) -> Range:
    return value if isinstance(value, Range) else Range(**value)


def _importance(study: optuna.Study) -> dict[str, float]:
    """Return each parameter's share of the accuracy variance; empty with too few trials."""
    complete = _trials(study, TrialState.COMPLETE)
    if len(complete) < 4 or len({t.value for t in complete}) < 2 or len(complete[0].params) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study))


# ---- what a crash left behind


def abandoned_trials() -> list[tuple[str, int]]:
    """Return search and number of each RUNNING trial whose search does not run."""
    abandoned = []
    for study in _studies():
        if not is_held(search_lock(study.study_name)):
            abandoned += [(study.study_name, trial.number) for trial in _trials(study, TrialState.RUNNING)]
    return abandoned


def trials_of(run_ids: Container[str]) -> list[tuple[str, int, str]]:
    """Return search, number and run id of each trial that ended with one of these runs."""
    rows = ((study, trial, _row(study, trial)["run_id"]) for study in _studies() for trial in _trials(study, *DONE))
    return [(study.study_name, trial.number, run_id) for study, trial, run_id in rows if run_id in run_ids]


def _studies() -> list[optuna.Study]:
    if storage_uri().startswith("sqlite") and not (runs_folder() / "optuna.db").is_file():
        return []
    storage = _storage()
    return [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]


def give_up_trial(name: str, number: int) -> None:
    """Mark an abandoned trial FAIL, and keep its slot and its parameters for the next start.

    Args:
        name: The search.
        number: Number of the trial.

    Raises:
        filelock.Timeout: If the search runs again.
    """
    with filelock.FileLock(search_lock(name), timeout=0):
        study = optuna.load_study(study_name=name, storage=_storage())
        for trial in _trials(study, TrialState.RUNNING):
            if trial.number == number:
                _give_back(study, trial)
