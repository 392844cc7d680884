"""Where work runs: here, in processes of this machine, or on Ray; one contract for the three."""

from workbench.lab.executors.base import Executor, Resources
from workbench.lab.executors.choice import Choice
from workbench.pool import Outcome, Task

__all__ = ["Choice", "Executor", "Outcome", "Resources", "Task"]
