"""The random numbers of all fuzz tests. Another seed tries other damage."""

import random

import pytest

SEED = 0


@pytest.fixture
def rng() -> random.Random:
    return random.Random(SEED)
