"""Choose an executor by the options of the command line or by WORKBENCH_EXECUTOR.

Examples: `processes:4`, `ray:8,gpus=0.5`.
"""

from dataclasses import dataclass, replace

from workbench import environment
from workbench.errors import WorkbenchError, shown, unknown
from workbench.lab.executors import context
from workbench.lab.executors.base import Executor, Resources
from workbench.machine import cores
from workbench.pool import visible_gpus

VARIABLE = "WORKBENCH_EXECUTOR"
KINDS = ("inline", "processes", "ray")


@dataclass(frozen=True)
class Choice:
    """An executor that is not made yet.

    Attributes:
        kind: "inline", "processes" or "ray".
        workers: Tasks at a time. None: one per GPU; without GPUs, half the cores, at least two. On Ray as many as fit.
        gpus: Share of a GPU that one task takes, 0 to 1.
        threads: CPU threads of one task.

    Raises:
        WorkbenchError: If a value is out of range, or `kind` is inline and another field is set.
    """

    kind: str = "inline"
    workers: int | None = None
    gpus: float | None = None
    threads: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown("executor", self.kind, KINDS)
        for name in ("workers", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise WorkbenchError(f"`{name}` must be at least 1, got {value}.")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise WorkbenchError(
                f"`gpus` must be from 0 to 1, because one training runs on one GPU, got {self.gpus}. "
                "For several GPUs use torchrun, see `workbench train --help`."
            )
        if self.kind == "inline" and (self.workers or 1) > 1:
            raise WorkbenchError(
                f"executor inline has one worker, got `workers` {self.workers}. Use --executor processes."
            )
        if self.kind == "inline" and (self.gpus is not None or self.threads is not None):
            raise WorkbenchError(
                f"executor inline uses the GPUs and threads of this process, got gpus={self.gpus} and "
                f"threads={self.threads}. Use --executor processes."
            )

    @classmethod
    def of(cls, kind: str | None, workers: int | None, gpus: float | None, threads: int | None) -> "Choice":
        """Choose by the command line's options. None: the option is not given.

        WORKBENCH_EXECUTOR holds the defaults where `kind` is not given. Without it, several workers, several visible
        GPUs, or a value for `gpus` or `threads` mean processes.
        """
        if kind is None and (named := environment.text(VARIABLE)):
            given = {"workers": workers, "gpus": gpus, "threads": threads}
            return replace(cls.parse(named), **{name: value for name, value in given.items() if value is not None})
        if kind is None:
            several = workers > 1 if workers is not None else len(visible_gpus()) > 1
            kind = "processes" if several or gpus is not None or threads is not None else "inline"
        return cls(kind, workers, gpus, threads)

    @classmethod
    def from_environment(cls) -> "Choice":
        """Choose what the launcher chose, else WORKBENCH_EXECUTOR, else inline."""
        launched = context.current()
        return cls.parse(launched.executor if launched is not None else environment.text(VARIABLE) or "inline")

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Read `kind[:workers][,gpus=SHARE][,threads=N]`.

        Raises:
            WorkbenchError: If the text has another form, an unknown name or a value out of range.
        """
        head, *options = text.split(",")
        kind, _, workers = head.partition(":")
        named = dict(option.partition("=")[::2] for option in options)
        for name in named:
            if name not in ("gpus", "threads"):
                raise unknown(f"option in {VARIABLE}", name, ("gpus", "threads"))
        try:
            return cls(
                kind,
                int(workers) if workers else None,
                float(named["gpus"]) if "gpus" in named else None,
                int(named["threads"]) if "threads" in named else None,
            )
        except ValueError as error:
            if isinstance(error, WorkbenchError):
                raise WorkbenchError(f"the executor {shown(text)} cannot be used: {error}") from error
            raise WorkbenchError(
                f"an executor must look like `processes:4` or `ray:8,gpus=0.5,threads=2`, got {shown(text)}. "
                f"Correct {VARIABLE} or `executor`."
            ) from error

    def __str__(self) -> str:
        workers = f":{self.workers}" if self.workers is not None else ""
        gpus = f",gpus={self.gpus:g}" if self.gpus is not None else ""
        threads = f",threads={self.threads}" if self.threads is not None else ""
        return f"{self.kind}{workers}{gpus}{threads}"

    @property
    def count(self) -> int:
        """Number of tasks at a time, as far as it is known without a cluster."""
        if self.kind == "inline":
            return 1
        if self.workers is not None:
            return self.workers
        share = 1.0 if self.gpus is None else self.gpus
        gpus = len(visible_gpus())
        return gpus * max(1, int(1 / share + 1e-9)) if gpus and share else max(2, cores() // 2)

    def shared_environment(self) -> dict[str, str]:
        """Return the variables with which processes of several notebooks share one Ray cluster."""
        if self.kind != "ray":
            return {}
        from workbench.lab.executors.on_ray import cluster_address

        return {"RAY_ADDRESS": cluster_address()}

    def make(self) -> Executor:
        """Make the executor. Ray connects with the first task."""
        resources = Resources(self.gpus, self.threads)
        if self.kind == "inline":
            from workbench.lab.executors.inline import InlineExecutor

            return InlineExecutor()
        if self.kind == "processes":
            from workbench.lab.executors.processes import ProcessExecutor

            return ProcessExecutor(self.count, resources)
        from workbench.lab.executors.on_ray import RayExecutor

        return RayExecutor(self.workers, resources)
