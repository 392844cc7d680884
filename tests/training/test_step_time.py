"""The cost of a step. Evidence: arithmetic by hand, and a much larger batch costs more."""

import pandas as pd
import pytest

from workbench.errors import WorkbenchError
from workbench.training import TrainConfig
from workbench.training.step_time import known_costs, matched_steps, step_costs

SMALL = TrainConfig(steps=100, batch_size=16, train_size=256, progress=False, device="cpu")


@pytest.mark.parametrize(
    ("cost", "steps"), [(1.0, 200), (1.25, 160), (1.27, 160), (2.0, 100), (0.8, 250), (1.01, 200), (100.0, 10)]
)
def test_matched_steps_are_rounded_to_a_twentieth(cost, steps):
    assert matched_steps(200, cost) == steps


def test_a_larger_batch_costs_more_and_the_first_arm_costs_one(one_thread):
    costs = step_costs({"small": SMALL, "large": SMALL.replace(batch_size=128)}, rounds=3, steps=3).set_index("arm")
    assert costs.cost["small"] == 1
    assert costs.low["large"] <= costs.cost["large"] <= costs.high["large"]
    assert costs.cost["large"] > 1.5


def test_an_earlier_cost_replaces_the_current_one_and_a_misspelt_arm_is_refused_with_the_nearest():
    costs = pd.DataFrame({"arm": ["whole net", "ReLU"], "cost": [1.0, 0.9]})
    assert known_costs(costs, {"ReLU": 0.8}) == {"whole net": 1.0, "ReLU": 0.8}
    with pytest.raises(WorkbenchError, match=r"`costs_before`.*'ReLu'.*'ReLU'"):
        known_costs(costs, {"ReLu": 0.8})


def test_zero_rounds_are_refused():
    with pytest.raises(WorkbenchError, match=r"`rounds`.*0"):
        step_costs({"a": TrainConfig(steps=1)}, rounds=0)
