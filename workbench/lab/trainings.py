"""Trainings in the store: each is a run, and one whose key is already finished there is reused, not repeated."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm

from workbench.errors import WorkbenchError, unknown
from workbench.lab import events
from workbench.lab.session import Session
from workbench.lab.store import runs_folder
from workbench.training import TrainConfig, TrainResult, train, training_key
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World, joined
from workbench.training.inputs import source, source_digest
from workbench.training.loop import initial_model, pick_device, steps_of
from workbench.training.presets import changed, preset


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison: a label and the configuration it stands for."""

    label: str
    config: TrainConfig


def run_all(arms: Iterable[Arm | TrainConfig], session: Session, *, role: str = "screen") -> pd.DataFrame:
    """Trains every configuration, or takes it from the store, and returns one row each: arm, configuration, final
    metrics, run_id.

    All are checked before the first starts. A training that breaks (not: diverges) does not stop the others; it is
    reported at the end, as an error, when they are done and kept.
    """
    arms = [arm if isinstance(arm, Arm) else Arm(arm.model, arm) for arm in arms]
    for arm in arms:
        check(arm.config)
    rows, broken = [], []
    bar = tqdm(arms, desc="trainings", unit="run", disable=events.listening())
    for i, arm in enumerate(bar):
        try:
            run_id, result, _ = run_training(arm.config, session, role=role, arm=arm.label, position=(i, len(arms)))
        except Exception as error:  # out of memory, say: the others must not be lost
            broken.append(f"{arm.config.name}: {type(error).__name__}: {error}")
            continue
        rows.append({"arm": arm.label, **result.row(), "run_id": run_id})
    if broken:
        raise RuntimeError(f"{len(broken)} of {len(arms)} trainings broke, the others are kept:\n" + "\n".join(broken))
    return pd.DataFrame(rows)


def check(config: TrainConfig) -> None:
    """Refuses, before anything runs, what `train` would refuse."""
    data = source(config)
    pick_device(config.device)
    steps_of(config, len(data.train))
    if config.weights is not None:
        with torch.random.fork_rng(devices=[]):
            initial_model(config, data)


def run_training(
    config: TrainConfig,
    session: Session,
    *,
    role: str,
    arm: str,
    position: tuple[int, int] = (0, 1),
    watch: Callable[[dict], bool] | None = None,
    save: str | None = None,
) -> tuple[str, TrainResult, bool]:
    """One training as a run of the store: (run id, result, whether it was reused). `watch` sees every history row and
    may end it; `save` is where its weights go, and has it run even where its result is known. One that was killed goes
    on from its last checkpoint."""
    store = session.store
    key = training_key(config, source_digest(config))
    world = World.from_environment()
    with store.lock(f"{session.mode}-{key}"), joined(world):
        found = store.find_training(key, session.mode) if save is None else None
        folder = checkpoints_folder(session.mode, key)
        world.agree(None if found is not None else str(folder))
        if found is not None:
            run_id, result = found
        else:
            run_id = store.open_training(config, key, session.mode, role=role, arm=arm, owner=session.run_id)

            def log(row: dict) -> bool:
                store.log_row(run_id, row)
                events.emit(kind="step", name=config.name, step=row["step"], done=position[0], total=position[1])
                return bool(watch and watch(row))

            def keep(name: str, table: pd.DataFrame) -> None:
                from workbench.lab import plots

                store.log_table(run_id, table, name)
                figures = {"signal": plots.signal_over_time_figure, "curvature": plots.curvature_figure}
                if name in figures:
                    store.log_figure(run_id, figures[name](table), name)

            try:
                quiet = config.replace(progress=config.progress and not events.listening())
                checkpoints = Checkpoints(folder)
                result = train(quiet, log, keep, checkpoints=checkpoints, save=save)
                result = dataclasses.replace(result, config=config)
                if result.outcome != "diverged":  # those before a divergence are for `workbench replay`
                    checkpoints.remove()
            except BaseException as error:
                store.set_tags(run_id, outcome="failed", cause=f"{type(error).__name__}: {error}"[:500])
                store.close(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
                raise
            store.finish_training(run_id, result)
    if session.run_id is not None:
        store.tag_study(run_id, session.study, session.run_id)
    events.emit(
        kind="training",
        name=config.name,
        outcome=result.outcome,
        cause=result.cause,
        reused=found is not None,
        done=position[0] + 1,
        total=position[1],
    )
    return run_id, result, found is not None


def checkpoints_folder(mode: str, key: str) -> Path:
    """Where the checkpoints of the training with this key lie."""
    return runs_folder() / "checkpoints" / f"{mode}-{key[:32]}"


def help_training(config: TrainConfig) -> None:
    """What the other processes of a torchrun do, which have no store: their part of the first one's training, if it is
    not known already."""
    world = World.from_environment()
    with joined(world):
        folder = world.agree(None)
        if folder is not None:
            train(config.replace(progress=False), checkpoints=Checkpoints(folder))


def parse_config(texts: dict[str, str], recipe: str | None = None) -> TrainConfig:
    """A TrainConfig from NAME=VALUE texts, on top of a recipe: a preset or a YAML file with fields of TrainConfig.
    Without a length it is one epoch.

    Raises: WorkbenchError for an unknown preset, field or file, and for a value that a field cannot take.
    """
    fields = {f.name: f for f in dataclasses.fields(TrainConfig)}
    changes = {}
    for name, text in texts.items():
        if name not in fields:
            raise unknown("field of TrainConfig", name, fields)
        changes[name] = _as_field(fields[name].type, text if fields[name].type is str else parse_value(name, text))
    if recipe is not None and not recipe.endswith((".yaml", ".yml")):
        return changed(preset(recipe), changes)
    values = _read_recipe(recipe) if recipe is not None else {}
    values = {n: _as_field(fields[n].type, v) if n in fields else v for n, v in values.items()}
    if values.get("epochs") is None and values.get("steps") is None:
        values["epochs"] = 1.0
    return changed(TrainConfig.from_dict(values), changes)


def parse_value(name: str, text: str) -> object:
    """What NAME=TEXT means, read as YAML. Raises: WorkbenchError for text that is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise WorkbenchError(f"`{name}` (={text}) is no value in YAML: {' '.join(str(error).split())}.") from error


def _read_recipe(file: str) -> dict:
    try:
        values = yaml.safe_load(Path(file).expanduser().read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WorkbenchError(f"cannot read {file} as YAML ({error}).") from error
    if not isinstance(values, dict):
        raise WorkbenchError(f"{file} must hold fields of TrainConfig, a `name: value` a line.")
    return values


def _as_field(kind: type, value: object) -> object:
    """The value, as a number where the field wants one: YAML reads 1e-3 as text."""
    if isinstance(value, str) and kind in (float, float | None):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def recipe_text(config: TrainConfig) -> str:
    """The configuration as YAML, a field a line in TrainConfig's order: what `parse_config` reads."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
