"""End a training early: a log that prunes it, or a stop.

The first process calls the log and the stop, and all processes follow its answer.
"""

from collections.abc import Callable

from workbench.training.distributed import World

Log = Callable[[dict], bool | None]


class Pruning:
    """Pruning by a log, which gets every row of the history.

    If the log returns True before the last step, the training ends.

    Args:
        log: Called with each row.
        world: The processes of the training.
        total_steps: Steps of the whole training.
    """

    def __init__(self, log: Log | None, world: World, total_steps: int):
        self.log, self.world, self.total_steps = log, world, total_steps

    def __call__(self, *rows: dict) -> bool:
        """Pass rows to the log, in their order, and return whether the training ends here."""
        prune = self.log is not None and any([self.log(row) for row in rows])  # a list: the log gets every row
        return self.world.agree(prune) and rows[-1]["step"] < self.total_steps


class Stopping:
    """Stopping by a function that is called after every step except the last.

    Args:
        stop: Returns whether to stop.
        world: The processes of the training.
        total_steps: Steps of the whole training.
    """

    def __init__(self, stop: Callable[[], bool] | None, world: World, total_steps: int):
        self.stop, self.world, self.total_steps = stop, world, total_steps
        self.possible = world.agree(stop is not None)  # without a stop, no step waits for an answer

    def __call__(self, step: int) -> bool:
        """Return whether the training stops after this step."""
        if not self.possible or step >= self.total_steps:
            return False
        return self.world.agree(self.stop is not None and bool(self.stop()))
