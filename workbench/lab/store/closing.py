"""What becomes of a run if its work breaks."""

import contextlib
from collections.abc import Iterator

from workbench.lab.store.client import Store
from workbench.outcomes import FAILED


@contextlib.contextmanager
def closing(store: Store, run_id: str, what: str = "") -> Iterator[None]:
    """Close a run if the block breaks, as FAILED by an error and as KILLED by an interruption.

    Args:
        store: Has the run.
        run_id: The run, which is RUNNING. The block closes it as FINISHED.
        what: Precedes the cause, which becomes a tag.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # such as a store that cannot be reached, which is the error itself then
            store.set_tags(run_id, outcome=FAILED, cause=f"{what}{type(error).__name__}: {error}"[:500])
            store.close(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
