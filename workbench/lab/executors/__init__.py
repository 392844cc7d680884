"""Where work runs: here, in processes of this machine, or on Ray; one contract for the three."""

from workbench.lab.executors.base import Executor, Outcome, Resources, Task
from workbench.lab.executors.choice import Choice

__all__ = ["Choice", "Executor", "Outcome", "Resources", "Task"]
