"""Where work runs: in this process, in processes of this machine, or on Ray.

All three keep one contract, see `base`.
"""

from workbench.lab.executors.base import Executor, Resources
from workbench.lab.executors.choice import Choice
from workbench.pool import Outcome, Task

__all__ = ["Choice", "Executor", "Outcome", "Resources", "Task"]
