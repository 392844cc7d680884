"""Helpers of the measurements. Evidence: buffers, random state and pending graphs after a scope ends or fails."""

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.probes import shared
from workbench.probes.shared import left_unchanged, measured_parameters


class Counts(nn.Module):
    """Module that writes to one buffer and replaces another."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("average", torch.zeros(1))
        self.register_buffer("none", None)

    def forward(self, x):
        self.seen += 1
        self.average = 0.9 * self.average + x.mean()
        return x


@pytest.mark.parametrize("fails", [False, True])
def test_buffers_and_random_state_are_restored(fails):
    model, state = Counts(), torch.get_rng_state()
    seen, average = model.seen, model.average
    try:
        with left_unchanged(model):
            model(torch.randn(3))
            assert model.seen == 1 and model.average is not average
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert model.seen is seen and model.average is average and seen == average == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_from_before_the_scope_can_be_differentiated_after_it(training):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train(training)
    x = torch.randn(2, 3, 4, 4)
    pending, version = model(x), model[1].running_mean._version
    with left_unchanged(model):
        model(x)
    pending.square().sum().backward()
    assert model[1].running_mean._version == version


def test_without_scipy_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(shared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WorkbenchError, match=r"curvature .*`pip install scipy`"):
        measured_parameters(nn.Linear(1, 1), "curvature")
