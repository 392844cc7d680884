"""Seats: where one task runs at a time, with its GPU and its share of the cores."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.errors import WorkbenchError
from workbench.machine import cores


@dataclass(frozen=True)
class Seat:
    """A place for one worker: `gpu` is the only one that it sees, None for no GPU."""

    gpu: str | None
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its process starts with."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        return threads | {"CUDA_VISIBLE_DEVICES": self.gpu or ""}


def seats(workers: int, gpus: Sequence[str] = (), threads: int | None = None) -> list[Seat]:
    """Deal the GPUs out over the seats, in turn.

    Args:
        workers: The number of seats.
        gpus: Names as CUDA_VISIBLE_DEVICES has them. None of them hides all GPUs.
        threads: Threads of each seat. None takes OMP_NUM_THREADS, or else an equal share of the cores.
    """
    threads = threads or _threads_of_environment() or max(1, cores() // workers)
    return [Seat(gpus[i % len(gpus)] if gpus else None, threads) for i in range(workers)]


def _threads_of_environment() -> int | None:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else None


def visible_gpus() -> list[str]:
    """Name this machine's GPUs, as CUDA_VISIBLE_DEVICES has them.

    WORKBENCH_GPUS (a number) pretends that there are some, to try placement without any.
    """
    if (pretended := pretended_gpus()) is not None:
        return [str(i) for i in range(pretended)]
    import torch

    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def pretended_gpus() -> int | None:
    """Return the number in WORKBENCH_GPUS; None where it is not set."""
    text = os.environ.get("WORKBENCH_GPUS")
    if not text:
        return None
    if not text.isdigit():
        raise WorkbenchError(f"WORKBENCH_GPUS (={text}) must be a number of GPUs to pretend, or unset.")
    return int(text)
