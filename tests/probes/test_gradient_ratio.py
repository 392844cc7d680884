"""Gradient ratios. Evidence: a layer by hand."""

import pytest
import torch
from torch import nn

from workbench.probes import gradient_ratios


def test_ratios_by_hand():
    model = nn.Linear(2, 3, bias=True)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]]))
    model.weight.grad = torch.tensor([[5.0, 0.0], [0.0, 5.0], [0.0, 0.002]])
    table = gradient_ratios(model)  # ratios 1, 0.5 and 0.002 / eps = 2
    row = table.iloc[0]
    assert len(table) == 1
    assert (row.parameter, row.units) == ("weight", 3)
    assert (row["median"], row["max"]) == (pytest.approx(1.0), pytest.approx(2.0))
