"""Claim 6. Evidence: gradients of real networks, compared with each other and with ghost BatchNorm by hand.

The verdict flips with the table.
"""

import pytest
import torch
import torch.nn.functional as F
from support.accumulated import GRADIENTS, trainings

from workbench.claims import accumulation
from workbench.lab.statistics.rates import scored
from workbench.models import create_model
from workbench.probes.gradient_accumulation import accumulated_gradient, gradient_differences

ARMS = {
    "NF+AGC": ("nf_resnet_tiny", {"skip_gain": 1.0}),
    "GN": ("resnet_tiny", {"norm": "group"}),
    "BN": ("resnet_tiny", {}),
}


def test_only_the_gradient_of_batchnorm_depends_on_the_micro_batch():
    differences = gradient_differences(ARMS, [8, 16], [0, 1], "mnist5k", 32)
    largest = differences.groupby("arm").difference.max()
    assert largest["NF+AGC"] < 1e-12 and largest["GN"] < 1e-12
    assert differences[differences.arm == "BN"].difference.min() > 0.05
    assert len(differences) == 3 * 2 * 2


def test_accumulated_batchnorm_is_ghost_batchnorm():
    """Ghost BatchNorm: one backward pass of the mean loss of parts that are normalised one by one."""
    torch.manual_seed(0)
    model = create_model("resnet_tiny", 4, in_channels=1).double()
    torch.nn.init.normal_(model.linear.weight)
    x, y = torch.randn(12, 1, 28, 28, dtype=torch.float64), torch.arange(12) % 4
    accumulated = accumulated_gradient(model, x, y, 4)
    model.zero_grad()
    sum(F.cross_entropy(model(x[i : i + 4]), y[i : i + 4]) / 3 for i in (0, 4, 8)).backward()
    ghost = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(accumulated, ghost, rtol=1e-9, atol=1e-12)


def test_equal_within_the_margin_holds_and_a_difference_beyond_it_does_not():
    equal = accumulation.judge(GRADIENTS, trainings(0.0005))
    assert equal.holds is True and equal.effect.p < 0.05
    different = accumulation.judge(GRADIENTS, trainings(0.02))
    assert different.holds is False and different.effect.value.mean == pytest.approx(0.02)
    noisy = accumulation.judge(GRADIENTS, trainings(0.0, spread=0.02))
    assert noisy.holds is None
    assert equal.effect.value.mean == pytest.approx(0.0005)
    rows = equal.table.set_index("arm")
    assert rows.points.to_dict() == pytest.approx({"NF+AGC": 0.05, "BN": 1.0})
    assert rows.gradient_difference.to_dict() == {"NF+AGC": 1e-15, "BN": 0.3} and set(rows.micro_batch) == {"16"}


def test_an_accumulated_training_that_diverges_counts_in_the_difference():
    table = trainings(0.0005).assign(outcome="complete", val_acc=0.5)
    lost = (table.arm == "NF+AGC") & table.micro_batch.notna() & (table.seed < 5)
    table.loc[lost, ["test_acc", "val_acc", "outcome"]] = None, 0.1, "diverged"
    verdict = accumulation.judge(GRADIENTS, scored(table))
    assert verdict.effect.value.n == 8 and verdict.holds is not True


def test_the_figure_shows_the_margin_and_every_seed():
    figure = accumulation.figure(GRADIENTS, trainings(0.0))
    left, right = figure.axes
    assert left.get_yscale() == "log" and set(left.get_legend_handles_labels()[1]) == {"NF+AGC", "BN"}
    assert sum(len(line.get_xdata()) == 8 for line in right.lines) == 2
