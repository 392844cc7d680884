"""Damage for fuzz tests: bytes and trees that are changed at random, and what may come of reading them."""

import contextlib
import copy
import math
import random
import resource
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from workbench.errors import WorkbenchError

SECONDS, MEMORY = 5, 4 * 2**30  # limits of one input: time, and address space beyond what the process has
LONGEST = 1500  # characters of a message


def deep(levels: int = 200) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


ODD = [None, True, 0, -1, 0.5, math.nan, math.inf, 2**31, -(2**63), 2**64, 10**30, "", "x", "x" * 5000, "\0", "\ud800"]
ODD += ["../x", "a\nb", "1e3", [], {}, [None], {"": None}, {"a": [1]}, deep(), [["x"] * 3] * 3]
PLAIN_ODD = [value for value in ODD if value != "\ud800"]  # for what must be UTF-8


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change bytes in one to three ways: flips, cuts, and chunks that are doubled, inserted or filled."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at, n = rng.randrange(len(changed) + 1), rng.choice([1, 2, 4, 16, 64])
        match rng.randrange(6):
            case 0:
                for place in range(at, min(at + n, len(changed))):
                    changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[at : at + n]
            case 2:
                changed[at:at] = changed[at : at + n]
            case 3:
                changed[at:at] = rng.randbytes(n)
            case 4:
                changed[at : at + n] = rng.choice([b"\0", b"\xff", b"\x7f"]) * n
            case 5 if rng.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def odd_tree(tree, rng: random.Random, odd: Iterable = ODD):
    """Replace, remove or rename one node of a tree of dictionaries and lists."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    inside, key = rng.choice(places)
    action = rng.random()
    if action < 0.1:
        del inside[key]
    elif action < 0.2 and isinstance(inside, dict):
        inside[rng.choice(["", "x", "name", "\0", "x" * 300])] = inside.pop(key)
    else:
        inside[key] = rng.choice(list(odd))
    return tree


def _places(tree) -> Iterator[tuple]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in list(pairs):
        yield tree, key
        yield from _places(inner)


class Hang(BaseException):
    """An input took too long. No `except Exception` catches this."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """End what takes more time or memory."""

    def ring(*_):
        raise Hang

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, ring)
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def meet(cases: Iterable, read: Callable[[object], object]) -> Counter:
    """Read every case. Fail with the first input of each kind of error that no user should see.

    Returns:
        How many were read and how many were refused.
    """
    counts, faults = Counter(), {}
    for number, case in enumerate(cases):
        try:
            with bounded():
                read(case)
            counts["read"] += 1
        except WorkbenchError as error:
            counts["refused"] += 1
            text = str(error)
            if "\n" in text or len(text) > LONGEST:
                faults.setdefault(f"message {text[:60]!r}", (number, case, f"{len(text)} characters: {text[:300]!r}"))
        except (Exception, Hang) as error:
            counts["broken"] += 1
            last = [frame for frame in traceback.extract_tb(error.__traceback__) if "/workbench/" in frame.filename][
                -1:
            ]
            kind = f"{type(error).__name__} at {last[0].filename if last else '?'}:{last[0].lineno if last else 0}"
            faults.setdefault(kind, (number, case, str(error)[:300]))
    print(dict(counts))
    shown = [f"{kind}: case {n}, {repr(case)[:400]}: {text}" for kind, (n, case, text) in faults.items()]
    assert not faults, "\n".join(shown)
    return counts
