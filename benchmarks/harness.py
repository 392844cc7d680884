"""Harness that times our code, a peer and a second copy of the peer in turns.

A ratio is ours / peer within one round, shown as median (min..max) over the rounds. Lower is better. The control is
peer / peer, and a ratio within the control's spread is no difference.

On a CPU with one thread, the clock counts the process's own CPU time, because other processes disturb the wall clock of
a shared machine. With more threads, or on a GPU, it is the wall clock between synchronisations.
"""

import argparse
import datetime
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch


@dataclass
class Case:
    """Case of a benchmark: our code and the peer's code for the same task.

    Attributes:
        name: Name of the case.
        ours: Our code.
        peer: The peer's code.
        control: Second copy of the peer's code.
        agreement: Largest difference between the results of the two. It is checked before anything is timed.
        within: Largest allowed difference.
        target: Ratio to reach.
        moved: Bytes that one call must move at least.
        flops: Operations that one call must compute at least.
        calls: Calls in a round.
        prepare: Called before each turn, without being timed.
        dtype: Type of the numbers, for the machine's peak rate.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    control: Callable[[], object]
    agreement: float
    within: float
    target: float
    moved: float = 0.0
    flops: float = 0.0
    calls: int = 1
    prepare: Callable[[], object] = lambda: None
    dtype: torch.dtype = torch.float32


@dataclass
class Spread:
    """Median, minimum and maximum."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """Summarise values."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass
class Row:
    """Result of a case, as it is saved.

    Attributes:
        benchmark: Name of the program.
        case: Name of the case.
        peer: Name of the peer.
        ratio: Ours / peer.
        control: Peer / peer. None: counted, not timed.
        target: Ratio to reach.
        agreement: Largest difference between the results of the two.
        over_floor: Our time divided by the least time that this machine could take.
        device: Name of the GPU or CPU.
        threads: CPU threads.
        rounds: Number of rounds.
        torch: Version of torch.
        date: Date of the measurement, as YYYY-MM-DD.
    """

    benchmark: str
    case: str
    peer: str
    ratio: Spread
    control: Spread | None
    target: float
    agreement: float
    over_floor: float | None = None
    device: str = ""
    threads: int = 0
    rounds: int = 0
    torch: str = field(default_factory=lambda: torch.__version__)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @property
    def reached(self) -> bool:
        """Whether the median ratio reaches the target."""
        return self.ratio.median <= self.target


class Clock:
    """Clock for calls on a device.

    Args:
        device: The device.
        threads: CPU threads.
    """

    def __init__(self, device: torch.device, threads: int):
        self.device = device
        self.now = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        """Return the mean seconds of one call."""
        self._wait()
        started = self.now()
        for _ in range(calls):
            call()
        self._wait()
        return (self.now() - started) / calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Machine:
    """Measured peak rates of this machine.

    Args:
        clock: Clock of the device.

    Attributes:
        bandwidth: Bytes per second of copying or reading.
    """

    def __init__(self, clock: Clock):
        self.clock, self._rates = clock, {}
        size = 2**26 if clock.device.type == "cpu" else 2**29
        a, b = (torch.ones(size, device=clock.device) for _ in range(2))
        copying = 2 * 4 * size / min(clock.seconds(lambda: b.copy_(a), 3) for _ in range(4))
        reading = 4 * size / min(clock.seconds(a.max, 3) for _ in range(4))
        self.bandwidth = max(copying, reading)

    def flops(self, dtype: torch.dtype) -> float:
        """Return the operations per second of a matrix product."""
        if dtype not in self._rates:
            n = 2048 if self.clock.device.type == "cpu" else 8192
            a, b = (torch.randn(n, n, device=self.clock.device).to(dtype) for _ in range(2))
            self._rates[dtype] = 2 * n**3 / min(self.clock.seconds(lambda: a @ b, 2) for _ in range(4))
        return self._rates[dtype]

    def floor(self, case: Case) -> float:
        """Return the least time that this machine could take for one call, seconds."""
        return max(case.moved / self.bandwidth, case.flops / self.flops(case.dtype) if case.flops else 0.0)


def measure(case: Case, clock: Clock, rounds: int) -> tuple[Spread, Spread, float]:
    """Time a case. The three candidates take turns in a random order, which changes each round.

    Args:
        case: The case.
        clock: Clock of the device.
        rounds: Number of rounds.

    Returns:
        Ours / peer, control / peer, and the shortest time of ours, seconds.

    Raises:
        SystemExit: If the results of ours and the peer differ too much.
    """
    if not case.agreement <= case.within:
        raise SystemExit(
            f"{case.name} is not timed: the results differ by {case.agreement:.3g}, more than {case.within:g}."
        )
    calls = {"ours": case.ours, "peer": case.peer, "control": case.control}
    for call in calls.values():
        for _ in range(2):
            case.prepare()
            call()
    order, rng, seen = list(calls), random.Random(0), {name: [] for name in calls}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            case.prepare()
            seen[name].append(clock.seconds(calls[name], case.calls))
    ratios = [a / b for a, b in zip(seen["ours"], seen["peer"], strict=True)]
    controls = [a / b for a, b in zip(seen["control"], seen["peer"], strict=True)]
    return Spread.of(ratios), Spread.of(controls), min(seen["ours"])


def arguments(description: str, threads: int = 1, rounds: int = 15) -> argparse.Namespace:
    """Parse the options of all benchmarks and set the number of threads.

    Args:
        description: Docstring of the program. Its first line is the description.
        threads: Default number of CPU threads.
        rounds: Default number of rounds.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each candidate ({rounds})")
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads ({threads})")
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--only", default="", help="run only cases whose name contains this text")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, but torch finds none")
    torch.set_num_threads(args.threads)
    return args


def run(benchmark: str, peer: str, cases: Iterable[Case], args: argparse.Namespace) -> list[Row]:
    """Time the cases one after another, print a line for each, and write the rows.

    Args:
        benchmark: Name of the program.
        peer: Name of the peer.
        cases: The cases.
        args: Options from `arguments`.

    Returns:
        One row per case.
    """
    clock = Clock(torch.device(args.device), args.threads)
    machine, rows = Machine(clock), []
    print(
        f"{benchmark} against {peer}, on {device_name(args.device)}, {args.threads} threads, torch {torch.__version__}"
    )
    print(f"{'case':34} {'ours / peer':>22} {'peer / peer':>22} {'target':>7} {'x floor':>8}")
    for case in cases:
        if args.only not in case.name:
            continue
        ratio, control, seconds = measure(case, clock, args.rounds)
        floor = machine.floor(case)
        over = seconds / floor if floor else None
        rows.append(_row(benchmark, case.name, peer, ratio, control, case.target, case.agreement, over, args))
        print(
            f"{case.name:34} {ratio!s:>22} {control!s:>22} {case.target:7.2f} {over or float('nan'):8.1f}", flush=True
        )
    write(rows, args)
    return rows


def counted(benchmark: str, peer: str, cases: Iterable[tuple[str, float, float, float]], args) -> list[Row]:
    """Print and write ratios that are counted, not timed.

    Args:
        benchmark: Name of the program.
        peer: Name of the peer.
        cases: Tuples (case, ours / peer, target, agreement).
        args: Options from `arguments`.

    Returns:
        One row per case.
    """
    rows = []
    print(f"{benchmark} against {peer}, torch {torch.__version__}")
    for name, ratio, target, agreement in cases:
        rows.append(_row(benchmark, name, peer, Spread(ratio, ratio, ratio), None, target, agreement, None, args))
        print(f"{name:34} {ratio:6.3f}  target {target:.2f}", flush=True)
    write(rows, args)
    return rows


def _row(benchmark, case, peer, ratio, control, target, agreement, over, args) -> Row:
    where = {"device": device_name(args.device), "threads": args.threads, "rounds": args.rounds}
    return Row(benchmark, case, peer, ratio, control, target, agreement, over, **where)


def write(rows: list[Row], args: argparse.Namespace) -> None:
    """Write the rows to the file of `--json`, if given."""
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def device_name(device: str) -> str:
    """Return the name of the GPU or CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
