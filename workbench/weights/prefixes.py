"""Names of stored tensors without the prefixes of wrappers: torch.compile, DataParallel, FSDP, Lightning."""

from collections.abc import Iterable

from workbench.optim.names import INSIDE, OUTSIDE, inner_name

IN_FRONT = (*OUTSIDE, *INSIDE)


def stored_names(names: Iterable[str]) -> dict[str, str]:
    """Return each name with its plain name, which lacks the prefixes of wrappers.

    Unlike a network's parameters, stored tensors need not share a prefix. The names stay as they are if two of them
    would become the same.
    """
    plain = {name: _plain(name) for name in names}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in plain}


def _plain(name: str) -> str:
    *parts, last = name.split(".")
    while parts and parts[0] in IN_FRONT:
        parts = parts[1:]
    return inner_name(".".join([*parts, last]))
