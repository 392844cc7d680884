"""Tests of SAM. Evidence: a step by hand, parameters restored bit for bit, errors."""

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import SAM
from workbench.optim.sam import sub_batch


def test_one_step_equals_a_calculation_by_hand():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    sam = SAM([w, b], rho=0.5)
    (0.5 * w.square().sum() + 12 * b.sum()).backward()  # g = (3, 4, 12), its norm is 13
    sam.ascend()
    torch.testing.assert_close(w.detach(), torch.tensor([3 + 1.5 / 13, 4 + 2 / 13], dtype=torch.float64))
    torch.testing.assert_close(b.detach(), torch.tensor([6 / 13], dtype=torch.float64))
    assert w.grad is None
    (0.5 * w.square().sum()).backward()
    sam.descend()
    assert w.tolist() == [3.0, 4.0] and b.item() == 0.0
    torch.testing.assert_close(w.grad, torch.tensor([3 + 1.5 / 13, 4 + 2 / 13], dtype=torch.float64))


def test_parameters_are_restored_bit_for_bit():
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    sam = SAM(model.parameters())
    for _ in range(3):
        model(torch.randn(4, 5, dtype=torch.bfloat16)).square().sum().backward()
        sam.ascend()
        sam.descend()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_zero_gradient_moves_nothing_and_frozen_parameters_stay():
    w, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    sam = SAM([w, frozen])
    (0 * w).sum().backward()
    sam.ascend()
    assert w.tolist() == [1.0, 1.0] and frozen.tolist() == [1.0, 1.0]


def test_calls_in_the_wrong_order_are_refused():
    w = nn.Parameter(torch.ones(2))
    sam = SAM([w])
    with pytest.raises(WorkbenchError, match=r"ascend\(\)"):
        sam.descend()
    with pytest.raises(WorkbenchError, match=r"no gradient.*backward\(\)"):
        sam.ascend()
    w.sum().backward()
    sam.ascend()
    with pytest.raises(WorkbenchError, match=r"descend\(\)"):
        sam.ascend()
    with pytest.raises(WorkbenchError, match=r"`rho`.*0\.0"):
        SAM([w], rho=0.0)


def test_the_ascent_uses_a_fifth_of_the_batch():
    assert [sub_batch(n) for n in (4096, 64, 7, 2, 1)] == [819, 13, 1, 1, 1]


@pytest.mark.parametrize("rho", [0, -1, float("nan"), float("inf")])
def test_a_radius_that_is_not_finite_and_positive_is_refused(rho):
    with pytest.raises(WorkbenchError, match="rho"):
        SAM(nn.Linear(2, 2).parameters(), rho)


def test_a_parameter_that_is_listed_twice_is_refused():
    w, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    with pytest.raises(WorkbenchError, match="1 "):
        SAM([w, b, w])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert len(SAM(tied.parameters()).params) == 3
