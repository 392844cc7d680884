"""The price of a step. Evidence: arithmetic by hand, and that what is four times as much is found to cost more."""

import pytest

from workbench.lab.evidence.pace import matched_steps, step_costs
from workbench.training import TrainConfig

SMALL = TrainConfig(steps=100, batch_size=16, train_size=256, progress=False, device="cpu")


@pytest.mark.parametrize(
    ("cost", "steps"), [(1.0, 200), (1.25, 160), (1.27, 160), (2.0, 100), (0.8, 250), (1.01, 200), (100.0, 10)]
)
def test_steps_are_matched_to_a_twentieth(cost, steps):
    assert matched_steps(200, cost) == steps


def test_a_larger_batch_costs_more_and_the_first_costs_one(one_thread):
    found = step_costs({"small": SMALL, "large": SMALL.replace(batch_size=128)}, rounds=3, steps=3).set_index("arm")
    assert found.cost["small"] == 1
    assert found.low["large"] <= found.cost["large"] <= found.high["large"]
    assert found.cost["large"] > 1.5
