"""Observers for tests."""

from workbench.training.observers import Observer


class BeforeUpdate(Observer):
    """Calls `function(step, loss, model, optimizer)` before every update."""

    def __init__(self, function):
        self.before_update = function
