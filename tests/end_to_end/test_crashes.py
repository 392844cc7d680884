"""Kills at any moment lose nothing, repeat nothing, and do not change the numbers.

Evidence: the crash harness, with real processes. The long form is `python tests/support/crash_harness.py --kills 60`.
"""

import pytest
from support import crash_harness


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow)])
def test_twelve_kills_change_no_result(seed):
    table = crash_harness.campaign(12, seed, ("inline", "processes"))
    print(crash_harness.as_text(table))
    assert sum(table.values()) >= 12
