"""Progress of long work: a bar on a terminal and in Jupyter, and a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from tqdm.auto import tqdm

from workbench.environment import is_set

Item = TypeVar("Item")

EVERY = 30.0  # seconds between lines
EARLY = 0.25  # news shows sooner if this share of the time so far has passed since the last line


class Lines:
    """Prints lines where a bar cannot change its own line. It has those methods of tqdm that are used here.

    Args:
        total: Number of units. None: unknown.
        done: Units that were done before.
        desc: Name of the work.
        unit: Name of a unit, such as "step", or "B" for bytes.
        file: Where lines go.
    """

    def __init__(self, total: float | None, *, done: float = 0, desc: str, unit: str, file: TextIO):
        self.total, self.n, self.before = total, done, done
        self._desc, self._unit, self._file = desc, unit, file
        self._news = ""
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Count units."""
        self.n += n
        self.refresh()

    def set_postfix(self, news: Mapping[str, object], refresh: bool = True) -> None:
        """Show values, such as the loss of an evaluation, with the next line, which may come early."""
        self._news = "".join(f", {name} {value}" for name, value in news.items())
        if refresh:
            self._print_after(min(EVERY, EARLY * (time.monotonic() - self._started)))

    def set_postfix_str(self, news: str, refresh: bool = True) -> None:
        """Show a text with the next line."""
        self._news = f", {news}" if news else ""
        if refresh:
            self.refresh()

    def refresh(self) -> None:
        """Print a line if the last one is old enough."""
        self._print_after(EVERY)

    def write(self, text: str) -> None:
        """Print another line."""
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, which must not stop the work
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Do nothing: a line stays."""

    def __str__(self) -> str:
        number = self._bytes if self._unit == "B" else lambda n: f"{n:,.0f}"
        total = f" of {number(self.total)}" if self.total else ""
        unit = "" if self._unit == "B" else f"{self._unit} "
        return f"{self._desc}: {unit}{number(self.n)}{total}{self._news}{self._time_left()}"

    def _print_after(self, seconds: float) -> None:
        now = time.monotonic()
        if now - self._printed >= seconds:
            self._printed = now
            self.write(str(self))

    def _time_left(self) -> str:
        counted = self.n - self.before
        if not self.total or counted <= 0:
            return ""
        left = (time.monotonic() - self._started) * max(0.0, self.total - self.n) / counted
        return f", {tqdm.format_interval(left)} left"

    @staticmethod
    def _bytes(n: float) -> str:
        return f"{tqdm.format_sizeof(n)}B"


def shows_bars(file: Any) -> bool:
    """Return whether a bar can change its own line: on a terminal and in Jupyter."""
    return file.isatty() or type(file).__module__.startswith("ipykernel")


def bar(
    total: float | None = None,
    *,
    done: float = 0,
    desc: str,
    unit: str,
    shown: bool = True,
    leave: bool = False,
    delay: float = 0,
) -> "tqdm | Lines":
    """Make a progress bar, or lines where the output is no terminal.

    Args:
        total: Number of units. None: unknown.
        done: Units that were done before.
        desc: Name of the work.
        unit: Name of a unit, such as "step", or "B" for bytes.
        shown: Whether to show anything.
        leave: Whether a bar stays at its end.
        delay: Seconds until a bar appears.
    """
    shown = shown and not is_set("TQDM_DISABLE")
    if shown and not shows_bars(sys.stderr):
        return Lines(total, done=done, desc=desc, unit=unit, file=sys.stderr)
    looks: dict[str, Any] = {"leave": leave, "delay": delay, "mininterval": 0.5, "unit_scale": unit == "B"}
    return tqdm(total=total, initial=done, desc=desc, unit=unit, disable=not shown, **looks)


def counted(items: Sequence[Item], *, desc: str, unit: str, **options: Any) -> Iterator[Item]:
    """Yield the items, and show how many are done by a bar with these options."""
    with bar(len(items), desc=desc, unit=unit, **options) as counter:
        for item in items:
            yield item
            counter.update()


def write(text: str) -> None:
    """Print a line to standard error, above a bar if there is one."""
    with contextlib.suppress(OSError, ValueError):  # nobody reads it, which must not stop the work
        tqdm.write(text, file=sys.stderr)
