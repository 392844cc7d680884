"""Which executor: by the command line's options, or WORKBENCH_EXECUTOR, e.g. `processes:4` or `ray:8,gpus=0.5`."""

import os
from dataclasses import dataclass, replace

from workbench.errors import WorkbenchError, unknown
from workbench.lab.executors import context
from workbench.lab.executors.base import Executor, Resources
from workbench.machine import cores
from workbench.pool import visible_gpus

VARIABLE = "WORKBENCH_EXECUTOR"
KINDS = ("inline", "processes", "ray")


@dataclass(frozen=True)
class Choice:
    """An executor that is not made yet. `workers` None: one for each GPU; without GPUs, half the cores and at least
    two, or as many as fit on Ray. `gpus` and `threads` are those of one task."""

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
                raise WorkbenchError(f"`{name}` (={value}) must be at least 1.")
        if self.gpus is not None and not 0 <= self.gpus <= 1:
            raise WorkbenchError(
                f"`gpus` (={self.gpus}) must lie in 0..1, for one training runs on one GPU: "
                "for several use torchrun, see `workbench train --help`."
            )
        if self.kind == "inline" and (self.workers or 1) > 1:
            raise WorkbenchError(f"executor inline has one worker, not {self.workers}: use --executor processes.")

        if self.kind == "inline" and (self.gpus is not None or self.threads is not None):
            raise WorkbenchError("executor inline takes what this process has: for gpus or threads use processes.")

    @classmethod
    def of(cls, kind: str | None, workers: int | None, gpus: float | None, threads: int | None) -> "Choice":
        """What the options say, where each may be left out: several workers, or GPUs, mean processes."""
        if kind is None and (named := os.environ.get(VARIABLE)):
            given = {"workers": workers, "gpus": gpus, "threads": threads}
            return replace(cls.parse(named), **{name: value for name, value in given.items() if value is not None})
        if kind is None:
            several = workers > 1 if workers is not None else len(visible_gpus()) > 1
            kind = "processes" if several or gpus is not None or threads is not None else "inline"
        return cls(kind, workers, gpus, threads)

    @classmethod
    def from_environment(cls) -> "Choice":
        """What the launcher says, else WORKBENCH_EXECUTOR; inline where neither says anything."""
        here = context.current()
        return cls.parse(here.executor if here is not None else os.environ.get(VARIABLE) or "inline")

    @classmethod
    def parse(cls, text: str) -> "Choice":
        """Reads `kind[:workers][,gpus=SHARE][,threads=N]`."""
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
                raise
            raise WorkbenchError(
                f"{VARIABLE} (={text}) must look like `processes:4` or `ray:8,gpus=0.5,threads=2`."
            ) from error

    def __str__(self) -> str:
        workers = f":{self.workers}" if self.workers is not None else ""
        gpus = f",gpus={self.gpus:g}" if self.gpus is not None else ""
        threads = f",threads={self.threads}" if self.threads is not None else ""
        return f"{self.kind}{workers}{gpus}{threads}"

    @property
    def count(self) -> int:
        """How many tasks it runs at a time, where that is known without asking a cluster."""
        if self.kind == "inline":
            return 1
        if self.workers is not None:
            return self.workers
        share = 1.0 if self.gpus is None else self.gpus
        gpus = len(visible_gpus())
        return gpus * max(1, int(1 / share + 1e-9)) if gpus and share else max(2, cores() // 2)

    def shared_environment(self) -> dict[str, str]:
        """What the processes of several notebooks need to share one executor: the address of a Ray cluster."""
        if self.kind != "ray":
            return {}
        from workbench.lab.executors.on_ray import cluster_address

        return {"RAY_ADDRESS": cluster_address()}

    def make(self) -> Executor:
        """The executor; that of Ray connects."""
        resources = Resources(self.gpus, self.threads)
        if self.kind == "inline":
            from workbench.lab.executors.inline import InlineExecutor

            return InlineExecutor()
        if self.kind == "processes":
            from workbench.lab.executors.processes import ProcessExecutor

            return ProcessExecutor(self.count, resources)
        from workbench.lab.executors.on_ray import RayExecutor

        return RayExecutor(self.workers, resources)
