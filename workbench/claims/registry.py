"""Every claim, found from the claim files: each of them has a `CLAIM`."""

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import pandas as pd
from matplotlib.figure import Figure

import workbench.claims
from workbench.claims.claim import Claim
from workbench.errors import WorkbenchError, unknown
from workbench.lab.statistics.verdict import Verdict

MACHINERY = ("claim", "registry", "judging")  # files of this folder that are no claims


@dataclass(frozen=True)
class RegisteredClaim:
    """A claim with its study, which has the name of the claim's file."""

    claim: Claim
    study: str
    module: ModuleType

    @property
    def number(self) -> int | None:
        """The claim's number; None for a question of our own."""
        return self.claim.number

    @property
    def sentence(self) -> str:
        """What is claimed."""
        return self.claim.sentence

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables that it is judged by."""
        return self.claim.tables

    @property
    def name(self) -> str:
        """What a person calls it: "claim 2, large_batch", or the study alone."""
        return self.study if self.number is None else f"claim {self.number}, {self.study}"

    def judge(self, tables: dict[str, pd.DataFrame]) -> Verdict:
        """The verdict, computed from these tables."""
        return self.module.judge(*(tables[name] for name in self.tables))

    def figure(self, tables: dict[str, pd.DataFrame]) -> Figure:
        """The figure, drawn from these tables."""
        return self.module.figure(*(tables[name] for name in self.tables))


@cache
def all_claims() -> tuple[RegisteredClaim, ...]:
    """All claims by their numbers, then our own questions by name."""
    registered = []
    for info in pkgutil.iter_modules(workbench.claims.__path__):
        if info.name not in MACHINERY:
            module = importlib.import_module(f"workbench.claims.{info.name}")
            registered.append(RegisteredClaim(module.CLAIM, info.name, module))
    return tuple(sorted(registered, key=lambda each: (each.number is None, each.number or 0, each.study)))


def claims() -> list[RegisteredClaim]:
    """The paper's claims, by number."""
    return [each for each in all_claims() if each.number is not None]


def questions() -> list[RegisteredClaim]:
    """Our own questions, which have no number."""
    return [each for each in all_claims() if each.number is None]


def chosen(names: list[str] | None = None) -> list[RegisteredClaim]:
    """The claims with these numbers, and claims and questions with these studies' names; without names, all claims.

    Raises:
        WorkbenchError: For an unknown number or name, with the nearest.
    """
    if not names:
        return claims()
    by_name = {str(each.number): each for each in claims()} | {each.study: each for each in all_claims()}
    for name in names:
        if name not in by_name:
            if name.isdigit():
                numbers = ", ".join(str(each.number) for each in claims())
                raise WorkbenchError(f"there is no claim {name}: the claims are {numbers}.")
            raise unknown("claim", name, by_name)
    wanted = {by_name[name].study for name in names}
    return [each for each in all_claims() if each.study in wanted]
