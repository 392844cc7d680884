"""The list of all claims. Every claim file of this folder has a `CLAIM`."""

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
from workbench.lab.statistics.failure_line import at_line
from workbench.lab.statistics.verdict import Verdict

# Files of this folder that are not claims
MACHINERY = ("claim", "confirmations", "evidence_figures", "judging", "over_networks", "registry")


@dataclass(frozen=True)
class RegisteredClaim:
    """A claim and its study. The study has the name of the claim's file."""

    claim: Claim
    study: str
    module: ModuleType

    @property
    def number(self) -> int | None:
        """The claim's number. None for a question."""
        return self.claim.number

    @property
    def sentence(self) -> str:
        """What is claimed."""
        return self.claim.sentence

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables that decide it."""
        return self.claim.tables

    @property
    def name(self) -> str:
        """A name for people: "claim 2, large_batch", or the study's name for a question."""
        return self.study if self.number is None else f"claim {self.number}, {self.study}"

    def read_again(self, tables: dict[str, pd.DataFrame]) -> list[pd.DataFrame]:
        """Return the claim's tables in order, with outcomes as they are defined today."""
        return [at_line(tables[name]) for name in self.tables]

    def judge(self, tables: dict[str, pd.DataFrame]) -> Verdict:
        """Compute the verdict from these tables."""
        return self.module.judge(*self.read_again(tables))

    def figure(self, tables: dict[str, pd.DataFrame]) -> Figure:
        """Draw the figure from these tables."""
        return self.module.figure(*self.read_again(tables))


@cache
def all_claims() -> tuple[RegisteredClaim, ...]:
    """Return all claims by number, then all questions by name."""
    registered = []
    for info in pkgutil.iter_modules(workbench.claims.__path__):
        if info.name not in MACHINERY:
            module = importlib.import_module(f"workbench.claims.{info.name}")
            registered.append(RegisteredClaim(module.CLAIM, info.name, module))
    return tuple(sorted(registered, key=lambda each: (each.number is None, each.number or 0, each.study)))


def claims() -> list[RegisteredClaim]:
    """Return the paper's claims by number."""
    return [each for each in all_claims() if each.number is not None]


def questions() -> list[RegisteredClaim]:
    """Return the questions, which have no number."""
    return [each for each in all_claims() if each.number is None]


def chosen(names: list[str] | None = None) -> list[RegisteredClaim]:
    """Select claims by number, and claims and questions by study name.

    Args:
        names: Numbers and names. Without names, all claims.

    Raises:
        WorkbenchError: If a number or name is unknown. The error gives the nearest name.
    """
    if not names:
        return claims()
    by_name = {str(each.number): each for each in claims()} | {each.study: each for each in all_claims()}
    for name in names:
        if name not in by_name:
            if name.isdigit():
                numbers = ", ".join(str(each.number) for each in claims())
                raise WorkbenchError(f"Claim {name} does not exist. The claims are {numbers}.")
            raise unknown("claim", name, by_name)
    wanted = {by_name[name].study for name in names}
    return [each for each in all_claims() if each.study in wanted]
