"""Pool of worker processes on this machine, for detached runs and the lab.

It needs only Python.
"""

from workbench.pool.dispatch import Pool
from workbench.pool.seats import Seat, seats, visible_gpus
from workbench.pool.task import Outcome, Task

__all__ = ["Outcome", "Pool", "Seat", "Task", "seats", "visible_gpus"]
