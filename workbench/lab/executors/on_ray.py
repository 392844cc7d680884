"""Work on the Ray cluster of RAY_ADDRESS, or on a local Ray. No other file imports Ray.

Ray places tasks by the resources they take, and restarts tasks whose worker or node is lost. It knows shares of GPUs.
Messages go through a mailbox, an actor that takes no resources. The nodes of a cluster need this checkout at the same
path, and the same environment.
"""

import logging
import time
from typing import Any

from workbench.environment import is_set, set_default, text
from workbench.errors import WorkbenchError
from workbench.lab.executors.base import Resources
from workbench.machine import cores
from workbench.paths import root
from workbench.pool import Outcome, Task
from workbench.pool.seats import pretended_gpus
from workbench.pool.task import run_task

set_default("RAY_USAGE_STATS_ENABLED", "0")
set_default("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU keeps its environment
ASK_EVERY = 2.0  # seconds between two checks whether to stop


class RayExecutor:
    """Runs up to `workers` tasks at a time on Ray; see `Executor`.

    Args:
        workers: Tasks at a time. None: as many as fit.
        resources: What one task takes.
    """

    def __init__(self, workers: int | None, resources: Resources | None = None):
        self.workers, self._resources = workers, resources or Resources()
        self._ray = None  # connected with the first task
        self._tasks: dict[Any, tuple[int, Task]] = {}
        self._numbers = 0

    def has_room(self) -> bool:
        """Say whether fewer than `workers` tasks are submitted."""
        return self._ray is None or len(self._tasks) < self.workers

    def submit(self, task: Task) -> None:
        """Take a task. The first one connects to Ray."""
        if self._ray is None:
            self._connect()
        self._numbers += 1
        work = self._ray.remote(_work).options(max_retries=task.retries, name=task.name, **self._options)
        environment = handed_down() | task.environment
        reference = work.remote(self._mailbox, self._numbers, task.function, task.arguments, environment)
        self._tasks[reference] = self._numbers, task

    def _connect(self) -> None:
        self._ray = connect()
        available, wanted = self._ray.cluster_resources(), self._resources
        gpus, cpus = available.get("GPU", 0), available.get("CPU", 1)
        share = wanted.gpus if wanted.gpus is not None else float(gpus >= 1)
        fitting = int(gpus / share) if share else int(cpus / (wanted.threads or 1))
        self.workers = self.workers or max(1, fitting)
        self._options = {"num_cpus": wanted.threads or max(1, int(cpus // self.workers)), "num_gpus": share}
        self._mailbox = self._ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=_this_node()).remote()
        self._letter = self._mailbox.take.remote()

    def wait(self) -> Outcome | None:
        """Answer messages until a task ends, and return its outcome. None: no task is running."""
        while self._tasks:
            (ready, *_), _ = self._ray.wait([self._letter, *self._tasks], num_returns=1)
            if ready == self._letter:
                self._answer()
            else:
                return self._outcome(ready)
        return None

    def stop(self, at_once: bool = False) -> None:
        """Ask the running tasks to save and stop, then end all workers and disconnect.

        Args:
            at_once: Cancel the tasks now. Otherwise they have 15 seconds.
        """
        if self._ray is None:
            return
        self._ray.get(self._mailbox.stop.remote())
        deadline = time.monotonic() + (0 if at_once else 15.0)
        while self._tasks and time.monotonic() < deadline:
            ready, _ = self._ray.wait([self._letter, *self._tasks], num_returns=1, timeout=0.5)
            for reference in ready:
                if reference == self._letter:
                    self._answer()
                else:
                    del self._tasks[reference]
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()
        self._ray.kill(self._mailbox)
        self._ray = None

    def _answer(self) -> None:
        number, letter, message = self._ray.get(self._letter)
        self._letter = self._mailbox.take.remote()
        task, reply = next((task for n, task in self._tasks.values() if n == number), None), None
        try:
            reply = task.on_message(message) if task is not None else None
        finally:
            self._mailbox.answer.remote(letter, reply)

    def _outcome(self, reference) -> Outcome:
        _, task = self._tasks.pop(reference)
        try:
            kind, *content = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Outcome(task, error=f"the worker was lost ({type(error).__name__})", died=True)
        if kind == "value":
            return Outcome(task, value=content[0])
        return Outcome(task, error=content[0], details=content[1])


def handed_down() -> dict[str, str]:
    """Return the variables of this process that tasks on other nodes need."""
    names = ("WORKBENCH_DATA", "WORKBENCH_CHECKPOINT_SECONDS")
    return {name: value for name in names if (value := text(name))} | {"WORKBENCH_ROOT": str(root())}


def cluster_address() -> str:
    """Connect as `connect` does, and return the address of the cluster."""
    return connect().get_runtime_context().gcs_address


def _this_node():
    """Return the strategy that keeps an actor on this process's node: it is lost only together with this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def connect():
    """Connect to the cluster of RAY_ADDRESS, else to a local one that ends with this process.

    Returns:
        The module `ray`, connected.

    Raises:
        WorkbenchError: If Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError as error:
        raise WorkbenchError(
            "executor ray needs Ray, which is not installed. Run `pip install .[ray]`, or use --executor processes."
        ) from error
    if ray.is_initialized():
        return ray
    options = {
        "runtime_env": {
            "env_vars": {"PYTHONPATH": text("PYTHONPATH") or ""}
        },  # so that workers can import the functions of tasks
        "log_to_driver": False,
        "logging_level": logging.ERROR,
    }
    if not is_set("RAY_ADDRESS"):
        options |= {"address": "local"}  # without this Ray would join any cluster that runs on this machine
        options |= {"num_cpus": cores(), "include_dashboard": False, "num_gpus": pretended_gpus()}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        address = text("RAY_ADDRESS") or "of this machine"
        cause = str(error).splitlines()[0]
        raise WorkbenchError(
            f"cannot connect to Ray ({address}): {cause}. Start it or correct RAY_ADDRESS, and set "
            "RAY_AUTH_MODE=token if the cluster needs a token."
        ) from error
    return ray


class _Mailbox:
    """Letters from tasks to the process that submitted them, and the answers."""

    def __init__(self):
        import asyncio

        self._letters, self._answers, self._count, self._stopped = asyncio.Queue(), {}, 0, False

    async def ask(self, number: int, message):
        import asyncio

        self._count += 1
        letter, answer = self._count, asyncio.get_running_loop().create_future()
        self._answers[letter] = answer
        await self._letters.put((number, letter, message))
        return await answer

    async def take(self):
        return await self._letters.get()

    async def answer(self, letter: int, reply) -> None:
        self._answers.pop(letter).set_result(reply)

    async def stop(self) -> None:
        self._stopped = True

    async def stopped(self) -> bool:
        return self._stopped


def _work(mailbox, number: int, function: str, arguments, environment: dict[str, str]) -> tuple:
    import ray

    last_check, stopped = time.monotonic(), False

    def stop() -> bool:
        nonlocal last_check, stopped
        if not stopped and time.monotonic() - last_check > ASK_EVERY:
            last_check, stopped = time.monotonic(), ray.get(mailbox.stopped.remote())
        return stopped

    return run_task(function, arguments, environment, lambda m: ray.get(mailbox.ask.remote(number, m)), stop)
