"""Run the last steps of a training again and record each.

A fork may run the same steps with another threshold or rate.
All random numbers of a step are a function of (seed, step). So a training repeats the same steps from a checkpoint or
from its beginning, on CPU bit for bit. The replay is checked against the record in the store.
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from workbench.errors import WorkbenchError, unknown
from workbench.lab.jobs.job_run import checkpoints_folder
from workbench.lab.jobs.recorder import Enough, Recorder
from workbench.lab.store.client import Store
from workbench.lab.store.closing import closing
from workbench.outcomes import DIVERGED
from workbench.training import TrainConfig, TrainResult, train, training_key
from workbench.training.checkpoint import Checkpoints
from workbench.training.config import code_hash
from workbench.training.inputs import source_digest
from workbench.training.setup import pick_device

ROSE = 10.0  # times its usual ratio: from here on a parameter counts as gone
LEAST = 1e-6  # smaller usual ratios count as this


@dataclasses.dataclass(frozen=True)
class First:
    """The first parameter whose gradient ratio rises for good; see `first_to_go`.

    Attributes:
        parameter: Its name.
        step: The step at which it goes.
        rise: Its ratio at that step over its usual ratio.
        went: False: no parameter goes, and this one rose most.
    """

    parameter: str
    step: int
    rise: float
    went: bool

    def __str__(self) -> str:
        how = f"{self.rise:.3g} times its usual ratio" if math.isfinite(self.rise) else "no longer a finite ratio"
        if self.went:
            return f"first to go: {self.parameter} at step {self.step}, {how}"
        return f"none goes; the ratio that rose most: {self.parameter} at step {self.step}, {how}"


@dataclasses.dataclass(frozen=True)
class Replay:
    """Result of `replay`, for the runs "original" and "fork".

    Values in the tables that are not finite are NaN, and so is the update of a step without one.

    Attributes:
        run_id: The run that holds the replay.
        steps: One row per run and step: run, step, loss, lr.
        ratios: One row per run, step and parameter. `ratio` is the largest |G_i| / max(|W_i|, eps) over units before
            clipping. `update` is the largest |dW_i| / max(|W_i|, eps).
        first: By run the first parameter to go.
        ends: By run how it ended.
        same: Whether the replay equals the record bit for bit.
        verdict: The comparison with the record, in words.
    """

    run_id: str
    steps: pd.DataFrame
    ratios: pd.DataFrame
    first: dict[str, First]
    ends: dict[str, str]
    same: bool
    verdict: str


class _Rewound(Checkpoints):
    """Reads checkpoints up to step `until`, and writes that of step `until` into another folder."""

    def __init__(self, folder: Path, until: int, fork: Path):
        super().__init__(folder, until=until)
        self.fork = Checkpoints(fork)

    def due(self, step: int) -> bool:
        return step == self.until

    def save(self, key: str, step: int, model: nn.Module, state: dict) -> None:
        self.fork.save(key, step, model, state)

    def latest(self, key: str, model: nn.Module, device: torch.device) -> dict | None:
        checkpoint = super().latest(key, model, device)
        if checkpoint is not None and checkpoint["step"] == self.until:
            self.fork.save(key, self.until, model, checkpoint)
        return checkpoint


def replay(
    run: str,
    *,
    back: int = 20,
    clip: float | None = None,
    lr: float | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Replay:
    """Run the last steps before a training's divergence or end again, and record each.

    The replay is kept as a run of the experiment `replays`, with the training's id in the tag `replay_of`. It starts
    from the newest checkpoint before these steps, else from the beginning. If the code has changed, `say` reports it,
    and the replay starts from the beginning: the recorded losses then show whether the change matters.

    Args:
        run: Run id of the training, or its unique beginning.
        back: Number of steps.
        clip: AGC threshold of a fork. It starts from the same weights, and takes `back` more steps after a divergence.
        lr: Peak learning rate of a fork. The schedule keeps its shape.
        device: As in TrainConfig. None: CPU if the training ran there, else as configured.
        progress: Whether to show a bar.
        say: Called with each line of the report.

    Returns:
        The recorded steps, the first parameter to go, and the comparison with the record.

    Raises:
        WorkbenchError: If the run is unknown, is not a training or has no result; if `back`, `clip` or `lr` is not
            positive and finite; if the images or the starting weights have changed.
    """
    for name, value in (("back", back), ("clip", clip), ("lr", lr)):
        if value is not None and not (0 < value < math.inf):
            raise WorkbenchError(f"`{name}` must be above 0 and finite, got {value}.")
    store = Store()
    original, mode, result = find_original(store, run)
    if device is None:
        device = "cpu" if result.device.startswith("cpu") else result.config.device
    pick_device(device)
    config = result.config.replace(device=device, progress=progress)
    _check_inputs(result, original)
    if clip is not None and config.clip_norm is not None:
        raise WorkbenchError(
            f"{config.name} clips by the whole norm (`clip_norm` {config.clip_norm}), so a fork with AGC would clip "
            f"twice, got `clip` {clip}. Leave `clip` out."
        )
    end = int(result.metrics.get("failed_at_step") or result.metrics["steps_done"])
    total = int(result.metrics["steps_planned"])
    start = max(0, end - back)

    past = Checkpoints(checkpoints_folder(mode, result.key), until=start).steps()
    if code_hash() != result.code:
        say("the code has changed since the training: the replay starts from the beginning, and compares the losses")
        past = []
    if not result.device.startswith("cpu") or device != "cpu":
        say(f"trained on {result.device}, replayed on {device}: only on CPU are trainings equal bit for bit")
    if result.versions.get("torch") != torch.__version__:
        say(f"trained with torch {result.versions.get('torch')}, replayed with {torch.__version__}: bits may differ")
    done = past[0] if past else 0
    steps = end - done
    seconds = result.seconds * steps / max(1, end)
    say(f"{config.name}: from {f'the checkpoint of step {done}' if done else 'its beginning'}, {steps} steps, "
        f"about {seconds:.0f} s at the training's speed")  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        rewound = _Rewound(checkpoints_folder(mode, result.key), start, Path(folder))
        recorders = {"original": Recorder(config, start + 1, end)}
        rows, repeated = _run(config, rewound, recorders["original"])
        outcomes = {"original": repeated}
        if recorders["original"].steps().empty:
            raise WorkbenchError(
                f"this is not the training of run {original}: it ends with {repeated.cause}, before the steps "
                f"{start + 1} to {end}. Use --back {total} to record all steps."
            )
        if clip is not None or lr is not None:
            last = min(total, end + back) if result.outcome == DIVERGED else end
            recorders["fork"] = Recorder(config, start + 1, last, clip=clip, lr=lr)
            _, outcomes["fork"] = _run(config, Checkpoints(folder, math.inf), recorders["fork"])

    steps_table = _joined({name: recorder.steps() for name, recorder in recorders.items()})
    ratios = _joined({name: recorder.ratios() for name, recorder in recorders.items()})
    ends = {name: _end(steps_table[steps_table.run == name], outcomes[name]) for name in recorders}
    first = {n: first_to_go(ratios[ratios.run == n], diverged=ends[n].startswith(DIVERGED)) for n in recorders}
    same, verdict = compared(result, rows, repeated, recorders["original"].began - 1)

    changes = {name: value for name, value in (("fork_clip", clip), ("fork_lr", lr)) if value is not None}
    parameters = {"model": config.model, "data": config.data, "seed": config.seed, "back": back, **changes}
    tags = {"replay_of": original, "device": device, "outcome": "as recorded" if same else "not as recorded"}
    run_id = store.open_run("replays", f"replay {config.name}", parameters, tags, source="workbench replay")
    result = Replay(run_id, steps_table, ratios, first, ends, same, verdict)
    with closing(store, run_id):
        _keep(store, result, original)
    return result


def find_original(store: Store, text: str) -> tuple[str, str, TrainResult]:
    """Find the training whose run id begins with `text`.

    Returns:
        Run id, mode and result.

    Raises:
        WorkbenchError: If no training or several match, if the run is not a training, or if it did not finish.
    """
    is_id = bool(text) and set(text.lower()) <= set("0123456789abcdef")
    beginning, modes = f"attributes.run_id ILIKE '{text}%'", ("full", "quick")
    pairs = [(run, mode) for mode in modes if is_id for run in store.search("trainings", mode, beginning)]
    trainings = {(run.id, mode): run for run, mode in pairs}
    if not trainings:
        execution = "run of a notebook"
        others = (("checks", "full", "check"), ("evaluations", "full", "evaluation"), ("replays", "full", "replay"))
        others += tuple(("studies", mode, execution) for mode in modes)
        for kind, mode, what in others if is_id else ():
            if store.search(kind, mode, beginning):
                raise WorkbenchError(
                    f"run {text} is a {what}, but only trainings can be replayed. Give a training's run id."
                )
        ids = [run.id for mode in modes for run in store.search("trainings", mode)]
        raise unknown("run id of a training", text, ids)
    if len(trainings) > 1:
        shown = ", ".join(sorted(run_id for run_id, _ in trainings)[:5])
        raise WorkbenchError(f"{len(trainings)} trainings begin with {text} ({shown}). Give more of the run id.")
    ((run_id, mode), run) = next(iter(trainings.items()))
    if run.status != "FINISHED":
        cause = run.tags.get("cause", "it may still run")
        raise WorkbenchError(
            f"run {run_id} is {run.status} ({cause}), but a replay needs a finished training. Run the training again."
        )
    return run_id, mode, store.read_result(run_id).as_train_result()


def first_to_go(ratios: pd.DataFrame, diverged: bool = True) -> First:
    """Find the parameter whose ratio rises first and stays high.

    The usual ratio of a parameter is the median over the first half of the steps. It goes at the step from which its
    ratio stays above ten times that, or not finite, up to the last step. If several go at one step, the one that rose
    most counts. In a training that did not diverge none goes, because gradients also grow while it learns.

    Args:
        ratios: Columns step, parameter, ratio (NaN: not finite).
        diverged: Whether the training diverged.

    Returns:
        The first parameter to go, or the one that rose most.
    """
    table = ratios.pivot(index="step", columns="parameter", values="ratio")[ratios.parameter.unique()]
    usual = table.iloc[: max(1, len(table) // 2)].median().clip(lower=LEAST)
    rise = (table / usual).fillna(math.inf)
    gone = (rise > ROSE).astype(int)[::-1].cummin()[::-1].astype(bool)
    if not diverged or not gone.any(axis=None):
        step, parameter = rise.stack().idxmax()
        return First(parameter, int(step), float(rise.loc[step, parameter]), went=False)
    step = gone.any(axis=1).idxmax()
    parameter = rise.loc[step][gone.loc[step]].idxmax()
    return First(parameter, int(step), float(rise.loc[step, parameter]), went=True)


def compared(recorded: TrainResult, rows: list[dict], repeated: TrainResult | None, done: int) -> tuple[bool, str]:
    """Compare a replay with the recorded training, bit for bit.

    Args:
        recorded: The recorded training.
        rows: History rows of the replay.
        repeated: Result of the replay. None: it did not diverge in its steps.
        done: Step after which the replay began.

    Returns:
        Whether they are equal, and the comparison in words.
    """
    new, old = ({row["step"]: row for row in history if row["step"] > done} for history in (rows, recorded.history))
    for step in sorted(old):
        for name, value in old[step].items():
            if name != "seconds" and new.get(step, {}).get(name) != value:
                return (
                    False,
                    f"differs from the record: {name} at step {step} was {value}, is {new.get(step, {}).get(name)}",
                )
    if recorded.outcome == DIVERGED:
        cause = None if repeated is None else repeated.cause
        if cause != recorded.cause:
            return False, f"differs from the record: was {recorded.cause}; is {cause or 'not diverged'}"
        return True, f"bitwise as recorded: {_count(old)} and the divergence, its step, loss and parameter"
    if not old:
        return False, "the record has no evaluation in these steps to compare with"
    return True, f"bitwise as recorded: {_count(old)}"


def _count(evaluations: dict) -> str:
    return f"{len(evaluations)} evaluation{'s' * (len(evaluations) != 1)}"


def _check_inputs(result: TrainResult, run_id: str) -> None:
    digest = source_digest(result.config)
    if digest != result.data_digest:
        raise WorkbenchError(
            f"the images of {result.config.data} have changed since run {run_id}: their digest is {digest[:12]}, "
            f"was {result.data_digest[:12]}. Restore the old images to replay it."
        )
    if code_hash() == result.code and training_key(result.config, digest) != result.key:
        raise WorkbenchError(
            f"the file of `weights`, {result.config.weights}, has changed since run {run_id}. Restore the old file."
        )


def _run(config: TrainConfig, checkpoints: Checkpoints, recorder: Recorder) -> tuple[list[dict], TrainResult | None]:
    """Train, and return the history rows and the result. None: the recorder ended the training."""
    rows: list[dict] = []
    try:
        return rows, train(config, rows.append, checkpoints=checkpoints, observers=[recorder])
    except Enough:
        return rows, None


def _end(steps: pd.DataFrame, result: TrainResult | None) -> str:
    last = steps.iloc[-1]
    if result is not None and result.outcome == DIVERGED and result.metrics["failed_at_step"] <= last.step:
        return f"diverged: {result.cause}"
    return f"not diverged at step {last.step:.0f}, loss {last.loss:.4g}"


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)


def _keep(store: Store, replayed: Replay, original: str) -> None:
    from workbench.lab.plots import replay_figure

    points = []
    for row in replayed.steps.itertuples():
        prefix = "" if row.run == "original" else "fork_"
        largest = replayed.ratios[(replayed.ratios.run == row.run) & (replayed.ratios.step == row.step)].ratio.max()
        points.append({"step": row.step, f"{prefix}loss": row.loss, f"{prefix}largest_ratio": float(largest)})
    store.log_rows(replayed.run_id, points)
    store.log_metrics(replayed.run_id, {"as_recorded": int(replayed.same)})
    store.log_table(replayed.run_id, replayed.steps, "steps")
    store.log_table(replayed.run_id, replayed.ratios, "ratios")
    first = {name: (first.parameter, first.step) for name, first in replayed.first.items() if first.went}
    store.log_figure(replayed.run_id, replay_figure(replayed.steps, replayed.ratios, first), "replay")
    store.describe(replayed.run_id, "\n\n".join([replayed.verdict, *sentences(replayed)]))
    store.set_tags(original, replay=replayed.run_id)
    store.close(replayed.run_id, "FINISHED")


def sentences(replayed: Replay) -> list[str]:
    """Say in a line per run how it ended and which parameter went first."""
    return [f"{name}: {replayed.ends[name]}; {replayed.first[name]}" for name in replayed.first]
