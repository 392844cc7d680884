"""Who may end a training early: a log that prunes it, and a stop. The first process asks, and all of them obey."""

from collections.abc import Callable

from workbench.training.distributed import World

Log = Callable[[dict], bool | None]


class Pruning:
    """Hands every row of the history to `log`, which prunes the training by answering True before the last step."""

    def __init__(self, log: Log | None, world: World, total_steps: int):
        self.log, self.world, self.total_steps = log, world, total_steps

    def __call__(self, *rows: dict) -> bool:
        """Report rows in their order, each once; whether the training ends here."""
        asked = self.log is not None and any([self.log(row) for row in rows])  # all of them, whatever it answers
        return self.world.agree(asked) and rows[-1]["step"] < self.total_steps


class Stopping:
    """Asks `stop` after every step but the last."""

    def __init__(self, stop: Callable[[], bool] | None, world: World, total_steps: int):
        self.stop, self.world, self.total_steps = stop, world, total_steps
        self.possible = world.agree(stop is not None)  # where nobody asks, no step waits for an answer

    def __call__(self, step: int) -> bool:
        """Whether the training stops after this step."""
        if not self.possible or step >= self.total_steps:
            return False
        return self.world.agree(self.stop is not None and bool(self.stop()))
