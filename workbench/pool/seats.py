"""Seats of a pool. A seat runs one task at a time, with its GPU and its share of the cores."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench import environment
from workbench.machine import cores


@dataclass(frozen=True)
class Seat:
    """Place for one worker.

    Attributes:
        gpu: The only GPU that the worker sees, as in CUDA_VISIBLE_DEVICES. None: no GPU.
        threads: Number of CPU threads.
    """

    gpu: str | None
    threads: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the worker process."""
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        return threads | {"CUDA_VISIBLE_DEVICES": self.gpu or ""}


def seats(workers: int, gpus: Sequence[str] = (), threads: int | None = None) -> list[Seat]:
    """Make seats and assign the GPUs to them in turn.

    Args:
        workers: Number of seats.
        gpus: Names of the GPUs, as in CUDA_VISIBLE_DEVICES. If empty, the workers see no GPU.
        threads: Threads of each seat. None: OMP_NUM_THREADS, or else an equal share of the cores.

    Returns:
        The seats.
    """
    threads = threads or _threads_of_environment() or max(1, cores() // workers)
    return [Seat(gpus[i % len(gpus)] if gpus else None, threads) for i in range(workers)]


def _threads_of_environment() -> int | None:
    threads = environment.text("OMP_NUM_THREADS") or ""  # may be a list, one number per level
    return int(threads) if threads.isascii() and threads.isdigit() and len(threads) < 10 and int(threads) else None


def visible_gpus() -> list[str]:
    """Return the names of this machine's GPUs, as in CUDA_VISIBLE_DEVICES.

    WORKBENCH_GPUS (a number) simulates GPUs, to try placement without them.

    Raises:
        WorkbenchError: If WORKBENCH_GPUS is not a whole number.
    """
    if (pretended := pretended_gpus()) is not None:
        return [str(i) for i in range(pretended)]
    import torch

    named = [name for name in (environment.text("CUDA_VISIBLE_DEVICES") or "").split(",") if name]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def pretended_gpus() -> int | None:
    """Return the number in WORKBENCH_GPUS; None if it is not set.

    Raises:
        WorkbenchError: If the value is not a whole number.
    """
    return environment.whole("WORKBENCH_GPUS")
