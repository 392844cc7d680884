"""A verdict: the answer of a study, computed from its tables.

A new run therefore cannot leave an outdated sentence. The functions that compute verdicts are in workbench.claims, one
file per question.
"""

import dataclasses
import math
from dataclasses import dataclass

import pandas as pd

from workbench.lab.statistics.intervals import Interval, points


@dataclass(frozen=True)
class Effect:
    """The number that decides a claim.

    Attributes:
        name: What the number is.
        value: The estimate and its 95 % interval.
        p: The p-value of the contrast. None if no test decides.
        in_points: Whether it is a difference of accuracies. Such a difference is written in points.
    """

    name: str
    value: Interval
    p: float | None = None
    in_points: bool = False

    @property
    def text(self) -> str:
        """The estimate with its interval."""
        return points(self.value) if self.in_points else f"{self.value:.3g}"

    def __str__(self) -> str:
        p = "" if self.p is None or math.isnan(self.p) else f", p = {self.p:.2g}"
        return f"{self.name} = {self.text}, n = {self.value.n}{p}"


@dataclass(frozen=True)
class Precondition:
    """What must be true so that a claim means something.

    Attributes:
        text: The condition, such as "BatchNorm reaches 85 % validation accuracy".
        measured: What was measured, such as "41.2 %".
        met: Whether it is true here.
    """

    text: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Verdict:
    """The answer of a study.

    Attributes:
        holds: Whether the claim holds. None: not decided.
        effect: The number that decides.
        headline: One sentence of at most 25 words, with one number and its interval.
        table: The details, a row per fact. The first column names the fact.
        stamp: A mark in front of the answer, such as DEMO.
        precondition: What makes the claim testable. None: it always is. If it is not met, it is not testable here.
        depends_on_line: Whether the answer changes with the failure line, see `failure_line.over_lines`.
        curve: The answer by failure line, see `failure_line.over_lines`.
    """

    holds: bool | None
    effect: Effect
    headline: str
    table: pd.DataFrame
    stamp: str = ""
    precondition: Precondition | None = None
    depends_on_line: bool = False
    curve: pd.DataFrame | None = None

    @property
    def testable(self) -> bool:
        """Whether the precondition is met."""
        return self.precondition is None or self.precondition.met

    @property
    def answer(self) -> str:
        """The verdict in words."""
        if not self.testable:
            return "Not testable here"
        if self.depends_on_line:
            return "Depends on the failure line"
        return {True: "Holds", False: "Does not hold", None: "Not decided"}[self.holds]

    def on(self, precondition: Precondition) -> "Verdict":
        """Return the verdict with a precondition. If it is not met, nothing is decided."""
        holds = self.holds if precondition.met else None
        return dataclasses.replace(self, precondition=precondition, holds=holds)

    def stamped(self, stamp: str) -> "Verdict":
        """Return the verdict with this stamp."""
        return dataclasses.replace(self, stamp=stamp)

    def metrics(self) -> dict[str, float]:
        """Return the numbers for the run's row: effect, its bounds and n, p, and holds as 0 or 1."""
        value, p = self.effect.value, self.effect.p
        numbers = {"effect": value.mean, "effect_low": value.low, "effect_high": value.high, "effect_n": value.n}
        numbers |= {} if p is None else {"p": p}
        return numbers | ({} if self.holds is None else {"holds": int(self.holds)})

    def __str__(self) -> str:
        stamp = f"**{self.stamp}** " if self.stamp else ""
        return f"{stamp}**{self.answer}.** {self.headline}\n\n*{self.effect}*\n\n{_as_markdown(as_text(self.table))}"

    def _repr_markdown_(self) -> str:
        return str(self)


def fact(name: str, value: Interval | float, **more: object) -> dict:
    """Make a row for the table of a verdict: the name, an estimate with its bounds, and further cells."""
    if not isinstance(value, Interval):
        return {"fact": name, "value": value, "low": math.nan, "high": math.nan, **more}
    return {"fact": name, "value": value.mean, "low": value.low, "high": value.high, "n": value.n, **more}


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return the cells as text, for people.

    An estimate and its bounds share a cell. The bounds are the columns `low` and `high` after it, or columns with these
    endings. Columns without content are left out.
    """
    names, columns = list(table), {}
    for i, name in enumerate(names):
        bounds = names[i + 1 : i + 3]
        if _is_bound(name):
            continue
        if len(bounds) == 2 and all(map(_is_bound, bounds)):
            columns[name] = [_estimate(*row) for row in table[[name, *bounds]].itertuples(index=False)]
        else:
            columns[name] = [_cell(value) for value in table[name]]
    return pd.DataFrame({name.replace("_", " "): cells for name, cells in columns.items() if any(cells)})


def _is_bound(name: str) -> bool:
    return name.rpartition("_")[2] in ("low", "high")


def _estimate(value: float, low: float, high: float) -> str:
    bounds = "" if math.isnan(low) else f"[{_cell(low)}, {_cell(high)}]"
    return f"{_cell(value)} {bounds}".strip()


def _cell(value: object) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    if pd.api.types.is_bool(value):
        return "yes" if value else "no"
    return f"{value:.0f}" if pd.api.types.is_integer(value) or abs(value) >= 100 else f"{value:.3g}"


def _as_markdown(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    rows = [list(table), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
