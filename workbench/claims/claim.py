"""What a claim file states as data: a sentence, its number, and its tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A sentence that a study can refute.

    The file of a claim also has the functions `judge`, which returns a Verdict, and `figure`. Both take the tables, in
    the order of `tables`.

    Attributes:
        sentence: What is claimed.
        number: Its number among the paper's claims. None marks a question of this project. A question is judged in the
            same way, but Holm's adjustment does not cover it.
        tables: Names of the tables that a run of the study stores.
    """

    sentence: str
    number: int | None = None
    tables: tuple[str, ...] = ("table",)
