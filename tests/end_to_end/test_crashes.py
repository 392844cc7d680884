"""Whatever is killed, whenever: nothing is lost, repeated or lied about, and the numbers are those of a quiet night.

Evidence: the crash harness, with real processes; `python tests/crash_harness.py --kills 60` is the long form of it.
"""

import pytest
from support import crash_harness


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow)])
def test_twelve_kills(seed):
    table = crash_harness.campaign(12, seed, ("inline", "processes"))
    print(crash_harness.as_text(table))
    assert sum(table.values()) >= 12
