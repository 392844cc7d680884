"""The update after a gradient. Evidence: one step by hand, from clipping to the average."""

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.training import TrainConfig
from workbench.training.setup import groups_of
from workbench.training.update import Update

BASE = TrainConfig(steps=10, scale_lr=False, base_lr=0.5, warmup=0.0, momentum=0.0, weight_decay=0.0)


def model():
    """A weight with rows of norm 5 and gradients of norm 25 and 0.25, then a classifier that AGC does not clip."""
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
        net[1].weight.copy_(torch.tensor([[1.0, 0.0]]))
    net[0].weight.grad = torch.tensor([[7.0, 24.0], [0.15, 0.2]])
    net[1].weight.grad = torch.tensor([[100.0, 0.0]])
    return net


def test_agc_clips_large_gradients_before_the_update():
    net = model()
    update = Update(net, BASE.replace(clip=0.5), total_steps=10)
    assert update(failed=None) == 0.5
    # 25 is clipped to 0.5 * 5 = 2.5: (0.7, 2.4); 0.25 stays
    torch.testing.assert_close(net[0].weight, torch.tensor([[3.0 - 0.35, 4.0 - 1.2], [3.0 - 0.075, 4.0 - 0.1]]))
    torch.testing.assert_close(net[1].weight, torch.tensor([[1.0 - 50.0, 0.0]]))
    assert update.clipped() == {"clipped_share": 0.5, "ratio_p99": pytest.approx(5.0)}


def test_clip_head_clips_every_head_and_is_refused_without_one():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 2, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.a(x), self.b(x)

    clips = {n: g["clip"] for g in groups_of(TwoHeads(), BASE.replace(clip=0.5, clip_head=True)) for n in g["names"]}
    assert set(clips.values()) == {0.5} and len(clips) == 4
    with pytest.raises(WorkbenchError, match=r"`clip_head`.*LayerNorm"):
        groups_of(nn.LayerNorm(3), BASE.replace(clip=0.5, clip_head=True))


def test_clip_exempt_or_no_clipping_decide_where_the_network_does_not():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x + self.a(x)
            return x + self.b(x)

    with pytest.raises(WorkbenchError, match=r"Residual.*`clip_exempt`"):
        groups_of(Residual(), BASE.replace(clip=0.5))
    groups = groups_of(Residual(), BASE.replace(clip=0.5, clip_exempt=["b.weight"]))
    assert [n for g in groups if g["clip"] is None for n in g["names"]] == ["b.weight"]
    assert len(groups_of(Residual(), BASE.replace(clip=None))) == 2


def test_the_classifier_is_clipped_with_clip_head():
    net = model()
    Update(net, BASE.replace(clip=0.5, clip_head=True, clip_eps=0.1), total_steps=10)(failed=None)
    torch.testing.assert_close(net[1].weight, torch.tensor([[1.0 - 0.25, 0.0]]))


def test_clip_eps_is_the_lower_bound_on_the_weight_norm():
    net = model()
    Update(net, BASE.replace(clip=0.5, clip_eps=10.0), total_steps=10)(failed=None)
    torch.testing.assert_close(net[0].weight[0], torch.tensor([3.0 - 0.7, 4.0 - 2.4]))  # to 0.5 * 10 = 5


def test_clip_norm_clips_the_whole_gradient_without_agc():
    net = model()
    net[1].weight.grad.zero_()
    net[0].weight.grad[1] = 0.0
    update = Update(net, BASE.replace(clip=None, clip_norm=2.5), total_steps=10)
    update(failed=None)
    torch.testing.assert_close(net[0].weight[0], torch.tensor([3.0 - 0.35, 4.0 - 1.2]), rtol=1e-5, atol=1e-5)
    assert update.clipped() == {"grad_norm": 25.0} and not update.agc_stats().units


def test_without_clipping_the_row_has_no_clipping_columns():
    net = model()
    update = Update(net, BASE.replace(clip=None), total_steps=10)
    update(failed=None)
    assert update.clipped() == {} and net[0].weight[0].tolist() == [3.0 - 3.5, 4.0 - 12.0]


def test_a_failed_step_leaves_the_weights_unchanged():
    net = model()
    Update(net, BASE.replace(clip=None), total_steps=10)(failed=torch.tensor(1.0))
    assert net[0].weight[0].tolist() == [3.0, 4.0]


def test_the_average_follows_the_update_and_the_rate_falls_to_zero():
    net = model()
    update = Update(net, BASE.replace(clip=None, ema=0.9), total_steps=2)
    update(failed=None)
    # decay (1 + 0) / (10 + 0) = 0.1: 0.1 * 3 + 0.9 * -0.5
    assert update.ema.model[0].weight[0, 0].item() == pytest.approx(0.3 - 0.45)
    assert [update(failed=None), update(failed=None)] == [pytest.approx(0.25), pytest.approx(0.0)]


def test_a_restored_state_continues_exactly():
    config = BASE.replace(clip=0.5, ema=0.9, momentum=0.9, warmup=0.5)
    straight, broken = model(), model()
    whole, first = Update(straight, config, 10), Update(broken, config, 10)
    rates = [whole(failed=None) for _ in range(4)]
    assert [first(failed=None) for _ in range(2)] == rates[:2]
    second = Update(broken, config, 10)
    second.load_state_dict(first.state_dict())
    assert [second(failed=None) for _ in range(2)] == rates[2:]
    assert torch.equal(straight[0].weight, broken[0].weight)
    assert torch.equal(whole.ema.model[0].weight, second.ema.model[0].weight)
    assert set(whole.state_dict()) == {"optimizer", "schedule", "agc", "ema"}
