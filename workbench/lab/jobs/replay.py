"""The last steps of a training once more, every one recorded; beside them a fork with another threshold or rate.

All that a step draws is a function of (seed, step), so from a checkpoint or from its beginning a training goes through
the very same steps, on CPU bit for bit. Whether it did is checked against what the store has recorded of it.
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
from workbench.training import TrainConfig, TrainResult, train, training_key
from workbench.training.checkpoint import Checkpoints
from workbench.training.config import code_hash
from workbench.training.inputs import source_digest
from workbench.training.setup import pick_device

ROSE = 10.0  # times its usual ratio: then a parameter has gone
LEAST = 1e-6  # a ratio below this is as good as none


@dataclasses.dataclass(frozen=True)
class First:
    """The first parameter to go, at which step, and how many times its usual ratio it had there; `went` is False where
    none did, and this is the one that rose most."""

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
    """What `replay` found. `steps` has one row a run ("original", "fork") and step: run, step, loss, lr; `ratios` one
    row a run, step and parameter: ratio, the largest |G_i| / max(|W_i|, eps) over units before clipping, and update,
    the largest |dW_i| / max(|W_i|, eps). What is not finite, and the update of a step without one, is NaN there."""

    run_id: str
    steps: pd.DataFrame
    ratios: pd.DataFrame
    first: dict[str, First]
    ends: dict[str, str]  # how each ended
    same: bool  # as the store has recorded it, bit for bit
    verdict: str


class _Rewound(Checkpoints):
    """Reads the checkpoints of a training up to a step, and writes one of that very step into another folder."""

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
    """Goes through the last `back` steps of a training of the store again, those before its divergence or its end, and
    keeps what it saw as a run of the experiment `replays`, which names the training under the tag `replay_of`.

    Args: `run` the training's run id or its unique beginning. With `clip` or `lr` a fork goes on from the same weights
    with that threshold or that peak rate (the schedule keeps its shape), for as many steps again behind the
    divergence. `device` as in TrainConfig; None: CPU for what was trained there, else as it was configured.
    It starts from the newest checkpoint before those steps, else from the beginning.
    Code that has changed since is named. The training then starts from the beginning: the recorded losses show
    whether the change matters.
    Raises: WorkbenchError for a run that is none, no training or has no result, for `back`, `clip` and `lr` that cannot
    be meant, and for other images or starting weights than those it was trained on.
    """
    for name, value in (("back", back), ("clip", clip), ("lr", lr)):
        if value is not None and not (0 < value < math.inf):
            raise WorkbenchError(f"`{name}` (={value}) must be above 0 and finite.")
    store = Store()
    original, mode, result = find_original(store, run)
    if device is None:
        device = "cpu" if result.device.startswith("cpu") else result.config.device
    pick_device(device)
    config = result.config.replace(device=device, progress=progress)
    _check_inputs(result, original)
    if clip is not None and config.clip_norm is not None:
        raise WorkbenchError(f"{config.name} clips by the whole norm: a fork with AGC beside it would clip twice.")
    end = int(result.metrics.get("failed_at_step") or result.metrics["steps_done"])
    total = int(result.metrics["steps_planned"])
    start = max(0, end - back)

    past = Checkpoints(checkpoints_folder(mode, result.key), until=start).steps()
    if code_hash() != result.code:
        say("the code has changed since: it starts from the beginning, and the recorded losses show if it is the same")
        past = []
    if not result.device.startswith("cpu") or device != "cpu":
        say(f"trained on {result.device}, replayed on {device}: only on CPU are two trainings equal bit for bit")
    if result.versions.get("torch") != torch.__version__:
        say(f"trained with torch {result.versions.get('torch')}, replayed with {torch.__version__}: bits may differ")
    done = past[0] if past else 0
    steps = end - done
    seconds = result.seconds * steps / max(1, end)
    say(f"{config.name}: from {f'the checkpoint of step {done}' if done else 'its beginning'}, {steps} steps, "
        f"about {seconds:.0f} s as it took then")  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        rewound = _Rewound(checkpoints_folder(mode, result.key), start, Path(folder))
        recorders = {"original": Recorder(config, start + 1, end)}
        rows, again = _run(config, rewound, recorders["original"])
        outcomes = {"original": again}
        if recorders["original"].steps().empty:
            raise WorkbenchError(
                f"this is not the training that run {original} recorded: {again.cause}, before the steps "
                f"{start + 1} to {end} that were asked for. --back {total} shows all of them."
            )
        if clip is not None or lr is not None:
            last = min(total, end + back) if result.outcome == "diverged" else end
            recorders["fork"] = Recorder(config, start + 1, last, clip=clip, lr=lr)
            _, outcomes["fork"] = _run(config, Checkpoints(folder, math.inf), recorders["fork"])

    steps_table = _joined({name: recorder.steps() for name, recorder in recorders.items()})
    ratios = _joined({name: recorder.ratios() for name, recorder in recorders.items()})
    ends = {name: _end(steps_table[steps_table.run == name], outcomes[name]) for name in recorders}
    first = {n: first_to_go(ratios[ratios.run == n], diverged=ends[n].startswith("diverged")) for n in recorders}
    same, verdict = compared(result, rows, again, recorders["original"].began - 1)

    changes = {name: value for name, value in (("fork_clip", clip), ("fork_lr", lr)) if value is not None}
    parameters = {"model": config.model, "data": config.data, "seed": config.seed, "back": back, **changes}
    tags = {"replay_of": original, "device": device, "outcome": "as recorded" if same else "not as recorded"}
    run_id = store.open_run("replays", f"replay {config.name}", parameters, tags, source="workbench replay")
    result = Replay(run_id, steps_table, ratios, first, ends, same, verdict)
    _keep(store, result, original)
    return result


def find_original(store: Store, text: str) -> tuple[str, str, TrainResult]:
    """(run id, mode, result) of the training whose run id begins with `text`.

    Raises: WorkbenchError where there is none, or several, or it is no training, or broke off.
    """
    an_id = bool(text) and set(text.lower()) <= set("0123456789abcdef")
    beginning, modes = f"attributes.run_id ILIKE '{text}%'", ("full", "quick")
    pairs = [(run, mode) for mode in modes if an_id for run in store.search("trainings", mode, beginning)]
    trainings = {(run.id, mode): run for run, mode in pairs}
    if not trainings:
        execution = "notebook's execution"
        others = (("checks", "full", "check"), ("evaluations", "full", "evaluation"), ("replays", "full", "replay"))
        others += tuple(("studies", mode, execution) for mode in modes)
        for kind, mode, what in others if an_id else ():
            if store.search(kind, mode, beginning):
                raise WorkbenchError(f"run {text} is a {what}: only trainings can be replayed.")
        ids = [run.id for mode in modes for run in store.search("trainings", mode)]
        raise unknown("training, by the beginning of its run id,", text, ids)
    if len(trainings) > 1:
        shown = ", ".join(sorted(run_id for run_id, _ in trainings)[:5])
        raise WorkbenchError(f"{len(trainings)} trainings begin with {text} ({shown}): give more of the run id.")
    ((run_id, mode), run) = next(iter(trainings.items()))
    if run.status != "FINISHED":
        cause = run.tags.get("cause", "it may still run")
        raise WorkbenchError(
            f"run {run_id} is {run.status} ({cause}): a replay needs a training that came to an end, run it again."
        )
    text = store.read_text(run_id, "result.json")
    return run_id, mode, TrainResult.from_json(text)


def first_to_go(ratios: pd.DataFrame, diverged: bool = True) -> First:
    """The parameter whose ratio rises first. Columns: step, parameter, ratio (NaN where it is not finite).

    The rule: its usual ratio is the median over the first half of these steps; it has gone at the step from which on it
    stays above ten times that, or is not finite, up to the last. Of several at one step, the one that rose most. In a
    training that did not diverge none goes: gradients grow as it learns, too.
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


def compared(recorded: TrainResult, rows: list[dict], again: TrainResult | None, done: int) -> tuple[bool, str]:
    """Whether a replay that began after step `done` is the recorded training, bit for bit, and how that is known."""
    mine, theirs = ({row["step"]: row for row in of if row["step"] > done} for of in (rows, recorded.history))
    for step in sorted(theirs):
        for name, value in theirs[step].items():
            if name != "seconds" and mine.get(step, {}).get(name) != value:
                return (
                    False,
                    f"differs from the record: {name} at step {step} was {value}, is {mine.get(step, {}).get(name)}",
                )
    if recorded.outcome == "diverged":
        cause = None if again is None else again.cause
        if cause != recorded.cause:
            return False, f"differs from the record: was {recorded.cause}; is {cause or 'not diverged'}"
        return True, f"bitwise as recorded: {_count(theirs)} and the divergence, its step, loss and parameter"
    if not theirs:
        return False, "nothing was recorded in these steps to compare with"
    return True, f"bitwise as recorded: {_count(theirs)}"


def _count(evaluations: dict) -> str:
    return f"{len(evaluations)} evaluation{'s' * (len(evaluations) != 1)}"


def _check_inputs(result: TrainResult, run_id: str) -> None:
    digest = source_digest(result.config)
    if digest != result.data_digest:
        raise WorkbenchError(
            f"the images of {result.config.data} are not those that run {run_id} was trained on "
            f"({digest[:12]}, not {result.data_digest[:12]}): put those back to replay it."
        )
    if code_hash() == result.code and training_key(result.config, digest) != result.key:
        raise WorkbenchError(
            f"`weights` (={result.config.weights}) are not those that run {run_id} started from: put those back."
        )


def _run(config: TrainConfig, checkpoints: Checkpoints, recorder: Recorder) -> tuple[list[dict], TrainResult | None]:
    """The history rows, and the result where the training came to its end."""
    rows: list[dict] = []
    try:
        return rows, train(config, rows.append, checkpoints=checkpoints, observers=[recorder])
    except Enough:
        return rows, None


def _end(steps: pd.DataFrame, result: TrainResult | None) -> str:
    last = steps.iloc[-1]
    if result is not None and result.outcome == "diverged" and result.metrics["failed_at_step"] <= last.step:
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
    """How each ended and which parameter went first, a line a run."""
    return [f"{name}: {replayed.ends[name]}; {replayed.first[name]}" for name in replayed.first]
