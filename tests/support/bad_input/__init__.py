"""Bad input from each boundary: files that cannot be used, and command lines that must refuse them.

A boundary is a way by which something comes from outside. Each has cases of every kind of failure, or says why a kind
cannot occur.
"""

from dataclasses import dataclass, field

KINDS = ("missing", "empty", "wrong type", "wrong value", "too large", "too deep", "damaged", "unreadable")


@dataclass(frozen=True)
class Case:
    """A command line that must be refused.

    Attributes:
        kind: One of `KINDS`.
        line: The command line. {bad} is the folder of the bad files. `plan FILE` runs a plan without tracking.
        names: What the message must contain.
        variables: Environment variables.
        code: The exit code.
    """

    kind: str
    line: str
    names: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    code: int = 2


def cases(kind: str, *rows: tuple, **same) -> list[Case]:
    """Make cases of one kind from rows (line, names)."""
    return [Case(kind, *row, **same) for row in rows]
