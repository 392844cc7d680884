"""The task of a worker: train, and write the result before reporting the end."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from workbench.environment import number
from workbench.files import write_whole
from workbench.training import TrainConfig, TrainResult, train, training_key
from workbench.training.checkpoint import Checkpoints
from workbench.training.distributed import World
from workbench.training.inputs import source_digest

TASK = f"{__name__}:train_task"  # the name of the function for a Task of the pool
RESULT = "result.json"
CHECKPOINT_SECONDS = "WORKBENCH_CHECKPOINT_SECONDS"  # environment variable: seconds between checkpoints


def train_task(arguments: dict, send: Callable, stop: Callable[[], bool]) -> str:
    """Train a configuration, starting from its last checkpoint.

    If the folder already holds the result, the result is sent again without training. This happens if the parent
    process ended before it received the result.

    Args:
        arguments: "config", a TrainConfig as a dictionary. "folder", the folder of the checkpoints. "save", the file
            for the final weights, or None.
        send: Takes ("row", row) and returns whether to prune. Takes ("table", name, table).
        stop: Returns whether to write a checkpoint and stop.

    Returns:
        The result as JSON.

    Raises:
        KeyboardInterrupt: If `stop` returns True.
    """
    config, folder = TrainConfig.from_dict(arguments["config"]), Path(arguments["folder"])
    alone = World.from_environment().size == 1  # other processes of this training would wait for this one
    kept = _kept(config, folder) if alone and not arguments["save"] else None
    if kept is not None:
        for row in kept.history:
            send(("row", row))
        for file in sorted(folder.glob("*.parquet")):
            send(("table", file.stem, pd.read_parquet(file)))
        return kept.to_json()

    torch.cuda.empty_cache()  # memory of the previous training, for other workers on this GPU

    def keep(name: str, table: pd.DataFrame) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        send(("table", name, table))

    result = train(
        config,
        lambda row: send(("row", row)),
        keep,
        checkpoints=Checkpoints(folder, every_seconds=checkpoint_seconds()),
        save=arguments["save"],
        stop=stop,
    )
    if result.outcome != "pruned":  # a later start decides again whether to prune
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RESULT, lambda path: path.write_text(result.to_json()))
    return result.to_json()


def checkpoint_seconds() -> float:
    """Return WORKBENCH_CHECKPOINT_SECONDS, by default 60: the most that a killed training loses."""
    return number(CHECKPOINT_SECONDS, 60)


def _kept(config: TrainConfig, folder: Path) -> TrainResult | None:
    try:
        result = TrainResult.from_json((folder / RESULT).read_text())
    except Exception:  # there is none, or it is damaged in whatever way: the training runs again
        return None
    return result if result.key == training_key(config, source_digest(config)) else None
