"""What a claim file states as data: a sentence, its number, its precondition, and its tables."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A sentence that a study can refute.

    The file of a claim also has the functions `judge`, which returns a Verdict, and `figure`. Both take the tables, in
    the order of `tables`.

    Attributes:
        sentence: What is claimed.
        precondition: What must be true so that the sentence means something. `judge` measures it. Where it is not met,
            the claim is not testable here.
        number: Its number among the paper's claims. None marks a question of this project. A question is judged in the
            same way, but Holm's adjustment does not cover it.
        tables: Names of the tables that a run of the study stores.
        unit: The unit of the effect.
        also: Studies that ask the same on other networks. The claim is judged over all of these networks.
    """

    sentence: str
    precondition: str
    number: int | None = None
    tables: tuple[str, ...] = ("table",)
    unit: str = "points"
    also: tuple[str, ...] = ()
