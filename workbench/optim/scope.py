"""Refusal to change parameters inside an open scope.

An open scope marks its parameters with the attribute `in_scope_of`, which holds the scope's name.
"""

from collections.abc import Iterable

from torch import Tensor

from workbench.errors import WorkbenchError


def refuse_open(params: Iterable[Tensor], what: str) -> None:
    """Refuse parameters that are in an open scope.

    Args:
        params: The parameters to use.
        what: What would go wrong in a scope, such as "AGC cannot clip".

    Raises:
        WorkbenchError: If one of the parameters is in an open scope.
    """
    for p in params:
        scope = getattr(p, "in_scope_of", None)
        if scope is not None:
            raise WorkbenchError(
                f"{what} inside a scope of {scope}. Gradients are incomplete there and weights must not change, so "
                "close the scope first."
            )
