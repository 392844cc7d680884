"""Parameters that must not change for a while say so by an attribute, `in_scope_of`, with the scope's name."""

from collections.abc import Iterable

from torch import Tensor

from workbench.errors import WorkbenchError


def refuse_open(params: Iterable[Tensor], what: str) -> None:
    """Raises: WorkbenchError where one of the parameters is in an open scope, in which `what` would go wrong."""
    for p in params:
        scope = getattr(p, "in_scope_of", None)
        if scope is not None:
            raise WorkbenchError(
                f"{what} inside a scope of {scope}: gradients are not complete there, and weights must not change; "
                "close the scope first."
            )
