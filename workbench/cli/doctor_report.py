"""Prints what the doctor finds: one line per finding, then a table."""

from collections.abc import Callable

import filelock
import psutil

from workbench.lab.doctor import examine


def report(fix: bool, moved: bool, say: Callable[[str], None]) -> bool:
    """Examine the workbench, print one line per finding, and print a table of the counts.

    Args:
        fix: Mend each finding that has a cure.
        moved: The user says that the store was moved or copied here and that nobody uses it.
        say: Gets each line.

    Returns:
        Whether nothing is left to mend.
    """
    by_kind: dict[str, list[tuple[bool, int]]] = {}
    for finding in examine(moved):
        mended = False
        if not fix or finding.mend is None:
            say(f"{finding.what}; {'would ' if finding.mend else ''}{finding.cure}")
        else:
            try:
                finding.mend()
                mended = True
                say(f"{finding.what}; done: {finding.cure}")
            except (OSError, psutil.Error, filelock.Timeout) as error:
                say(f"{finding.what}; could not {finding.cure} ({error or type(error).__name__})")
        by_kind.setdefault(finding.kind, []).append((mended, finding.size))
    if not by_kind:
        say("All well: nothing is left of a crash.")
        return True
    say(f"\n{'what':24}{'found':>8}{'mended':>8}{'MiB':>10}")
    for kind, each in by_kind.items():
        size = sum(size for _, size in each) / 2**20
        say(f"{kind:24}{len(each):8}{sum(mended for mended, _ in each):8}{size:10.1f}")
    if not fix:
        say("Nothing was changed. To mend, add --fix.")
    return all(mended for each in by_kind.values() for mended, _ in each)
