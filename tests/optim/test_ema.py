"""Tests of EMA. Evidence: the published warm-up by hand, a closed form, states that round-trip."""

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import EMA


def scalar(value=0.0):
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, value)
    return model


def test_the_average_starts_as_a_copy_and_warms_up_as_published():
    model = scalar(2.0)
    ema = EMA(model, decay=0.99999)
    assert ema.model.weight.item() == 2.0
    assert [ema.decay_at(t) for t in (0, 1, 8)] == [0.1, 2 / 11, 0.5]
    assert ema.decay_at(10_000_000) == 0.99999
    average = 2.0
    for t in range(3):
        with torch.no_grad():
            model.weight.fill_(float(t))
        ema.update()
        d = (1 + t) / (10 + t)
        average = d * average + (1 - d) * t
        assert ema.model.weight.item() == pytest.approx(average, rel=1e-12)


def test_a_constant_decay_forgets_geometrically():
    model = scalar(1.0)
    ema = EMA(model, decay=0.9, warmup=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    for _ in range(5):
        ema.update()
    assert ema.model.weight.item() == pytest.approx(0.9**5)


def test_batchnorm_statistics_are_averaged_and_counters_are_copied():
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.5, warmup=False)
    model(torch.tensor([[0.0, 10.0], [2.0, 10.0]]))
    ema.update()
    torch.testing.assert_close(ema.model.running_mean, model.running_mean / 2)
    assert ema.model.num_batches_tracked.item() == 1
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_a_loaded_state_continues_the_average():
    model = scalar(1.0)
    ema = EMA(model)
    ema.update()
    with torch.no_grad():
        model.weight.fill_(5.0)
    other = EMA(scalar(0.0))
    other.load_state_dict(ema.state_dict())
    other.source = model
    ema.update(), other.update()
    assert torch.equal(ema.model.weight, other.model.weight) and other.steps == 2


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_0_to_1_is_refused(decay):
    with pytest.raises(WorkbenchError, match=rf"`decay`.*got {decay}\."):
        EMA(scalar(), decay=decay)
