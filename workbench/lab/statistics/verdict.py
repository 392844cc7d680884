"""A verdict: what a study says, computed from its tables, so that a re-run cannot leave a stale sentence.

The functions that compute them are in workbench.claims, a file a question.
"""

import dataclasses
from dataclasses import dataclass

from workbench.lab.statistics.intervals import Interval, points


@dataclass(frozen=True)
class Verdict:
    """A sentence with its numbers, whether the claim holds (None: not decided), and the one effect it rests on."""

    sentence: str
    holds: bool | None
    effect_name: str
    effect: Interval
    stamp: str = ""
    p: float | None = None  # of the contrast that decides, where it is a test
    in_points: bool = False  # the effect is a difference of accuracies, told in points

    @property
    def effect_value(self) -> str:
        return points(self.effect) if self.in_points else f"{self.effect:.3g}"

    @property
    def effect_text(self) -> str:
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{self.effect_name} = {self.effect_value}, n = {self.effect.n}{p}"

    def stamped(self, stamp: str) -> "Verdict":
        return dataclasses.replace(self, stamp=stamp)

    def metrics(self) -> dict[str, float]:
        """The headline numbers, for the run's row: effect, its bounds and n, and holds as 0 or 1."""
        numbers = {
            "effect": self.effect.mean,
            "effect_low": self.effect.low,
            "effect_high": self.effect.high,
            "effect_n": self.effect.n,
        }
        numbers |= {} if self.p is None else {"p": self.p}
        return numbers | ({} if self.holds is None else {"holds": int(self.holds)})

    def __str__(self) -> str:
        answer = {True: "Holds.", False: "Does not hold.", None: "Not decided."}[self.holds]
        return f"{f'**{self.stamp}** ' if self.stamp else ''}**{answer}** {self.sentence}\n\n*{self.effect_text}*"

    def _repr_markdown_(self) -> str:
        return str(self)
