"""What a claim file states as data: the sentence, its number in the paper's list, and the tables it is judged by."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A sentence that a study can refute.

    The file of a claim has, next to it, two functions of the tables in their order: `judge`, which returns a Verdict,
    and `figure`.

    Attributes:
        number: Of the paper's claims. None marks a question of our own: judged in the same way, but no member of the
            family that Holm's adjustment covers.
        tables: What the study leaves, by the names under which its run keeps them.
    """

    sentence: str
    number: int | None = None
    tables: tuple[str, ...] = ("table",)
