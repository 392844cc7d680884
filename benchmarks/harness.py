"""Side by side in one run: candidates take turns, a second copy of the peer among them, and ratios are of one round.

A ratio is ours / peer, lower is better, as median (min..max) over the rounds; the control is peer / peer, and what lies
within its spread is no difference. On a CPU the time is the process's own on one thread, since the wall clock of a
shared machine is not to be trusted; with more threads, and on a GPU, it is the wall's around a synchronisation.
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
    """One row: two ways to do the same, and the least that either has to move and compute.

    `agreement` is the largest difference found between what the two compute, and `within` what it may be; it is checked
    before anything is timed. `moved` bytes and `flops` are of one call; `target` is the ratio aimed at.
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
    calls: int = 1  # in a round
    prepare: Callable[[], object] = lambda: None  # before each turn, not timed
    dtype: torch.dtype = torch.float32


@dataclass
class Spread:
    """Median, least and greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


@dataclass
class Row:
    """What is written down of a case."""

    benchmark: str
    case: str
    peer: str
    ratio: Spread
    control: Spread | None
    target: float
    agreement: float
    over_floor: float | None = None  # ours over the least time that this machine could take
    device: str = ""
    threads: int = 0
    rounds: int = 0
    torch: str = field(default_factory=lambda: torch.__version__)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @property
    def reached(self) -> bool:
        return self.ratio.median <= self.target


class Clock:
    """Seconds of a call, on this device."""

    def __init__(self, device: torch.device, threads: int):
        self.device = device
        self.now = time.process_time if device.type == "cpu" and threads == 1 else time.perf_counter

    def seconds(self, call: Callable[[], object], calls: int) -> float:
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
    """What it can do at best, measured: bytes a second by copying or reading, operations by a matrix product."""

    def __init__(self, clock: Clock):
        self.clock, self._rates = clock, {}
        size = 2**26 if clock.device.type == "cpu" else 2**29
        a, b = (torch.ones(size, device=clock.device) for _ in range(2))
        copying = 2 * 4 * size / min(clock.seconds(lambda: b.copy_(a), 3) for _ in range(4))
        reading = 4 * size / min(clock.seconds(a.max, 3) for _ in range(4))
        self.bandwidth = max(copying, reading)

    def flops(self, dtype: torch.dtype) -> float:
        if dtype not in self._rates:
            n = 2048 if self.clock.device.type == "cpu" else 8192
            a, b = (torch.randn(n, n, device=self.clock.device).to(dtype) for _ in range(2))
            self._rates[dtype] = 2 * n**3 / min(self.clock.seconds(lambda: a @ b, 2) for _ in range(4))
        return self._rates[dtype]

    def floor(self, case: Case) -> float:
        """The least seconds of a call."""
        return max(case.moved / self.bandwidth, case.flops / self.flops(case.dtype) if case.flops else 0.0)


def measure(case: Case, clock: Clock, rounds: int) -> tuple[Spread, Spread, float]:
    """(ours / peer, control / peer, least seconds of ours); the three take turns in an order drawn anew each round."""
    if not case.agreement <= case.within:
        raise SystemExit(f"{case.name}: the two differ by {case.agreement:.3g}, more than {case.within:g}: not timed.")
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
    """What every benchmark takes on its command line; sets the threads."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each candidate ({rounds})")
    parser.add_argument("--threads", type=int, default=threads, help=f"CPU threads ({threads})")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here")
    torch.set_num_threads(args.threads)
    return args


def run(benchmark: str, peer: str, cases: Iterable[Case], args: argparse.Namespace) -> list[Row]:
    """Measures the cases one after another, prints a line each and writes the rows."""
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
    """Rows that are counted, not timed: (case, ours / peer, target, agreement)."""
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
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def device_name(device: str) -> str:
    """The GPU's name, or the CPU's."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
