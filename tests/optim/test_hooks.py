"""Tests of AGC around a step: copies, closures, nested and missing steps.

Evidence: weights that equal those of the original, or of a loop that clips by hand.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import AGC, EMA, SAM, clip_grad_agc_, groups_table, param_groups


def falling(step):
    return 0.02 / (1 + step)


def tiny():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def training(clip=falling):
    model = tiny()
    optimizer = torch.optim.SGD(param_groups(model, clip=clip), lr=0.5, momentum=0.9)
    return model, optimizer, AGC(optimizer)


def step(model, optimizer, *_):
    optimizer.zero_grad()
    x = torch.arange(32.0).view(8, 4)
    model(x).square().sum().backward()
    optimizer.step()


def saved_and_loaded(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copied_training_clips_like_the_original(make):
    original = training()
    step(*original)
    copied = make(original)
    model, optimizer, agc = copied
    assert agc.optimizer is optimizer and agc is not original[2]
    for _ in range(2):
        step(*original)
        step(*copied)
    assert agc.steps == original[2].steps == 3
    assert agc.stats.clipped_share() == original[2].stats.clipped_share() > 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original[0].parameters(), strict=True))


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_states_of_a_copy_keep_the_step_count_and_functions(make):
    _, optimizer, agc = make(training())
    agc.steps = 7
    state = optimizer.state_dict()
    agc.steps = 0
    optimizer.load_state_dict(state)
    assert agc.steps == 7 and optimizer.param_groups[0]["clip"] is falling


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_the_copy_of_a_removed_agc_does_not_clip(make):
    original = training(clip=1e-6)
    original[2].remove()
    model, optimizer, agc = make(original)
    step(*original)
    step(model, optimizer)
    assert agc.steps == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original[0].parameters(), strict=True))


def test_removing_a_copy_leaves_the_original_clipping():
    original = training()
    *_, agc = copy.deepcopy(original)
    agc.remove()
    step(*original)
    assert original[2].steps == 1 and agc.steps == 0


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_the_average_and_sam_of_a_copy_follow_the_copied_model(make):
    model = tiny()
    model, ema, sam = make((model, EMA(model, 0.5, warmup=False), SAM(model.parameters(), rho=1.0)))
    assert ema.source is model and all(p is q for p, q in zip(sam.params, model.parameters(), strict=True))
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.ones(1, 4)).sum().backward()
    sam.ascend()
    ema.update()
    for average, start, now in zip(ema.model.parameters(), before, model.parameters(), strict=True):
        torch.testing.assert_close(average, (start + now) / 2)
    sam.descend()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# ---- closures and nested steps


def loss_of(model):
    return model(torch.arange(32.0).view(8, 4)).square().sum()


def by_hand(build, steps=3):
    """Train with `clip_grad_agc_` before each step. Return the parameters."""
    model = tiny()
    optimizer = build(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        clip_grad_agc_(model.parameters(), clip=0.02)
        optimizer.step()
    return list(model.parameters())


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "Adagrad", "NAdam"])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_a_closure_is_clipped_after_its_backward(name, by_keyword):
    build = lambda params: getattr(torch.optim, name)(params, lr=0.1)
    model = tiny()
    optimizer = build(model.parameters())
    agc = AGC(optimizer, clip=0.02)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(loss_of(model))
        losses[-1].backward()
        return losses[-1]

    for _ in range(3):
        returned = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
        assert returned is losses[-1]
    assert len(losses) == agc.steps == 3 and agc.stats.clipped_share() > 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand(build), strict=True))


def test_the_step_of_a_subclass_counts_once_and_keeps_the_norms_before_clipping():
    """Torch runs the hooks of both steps if an optimizer of the base class was made first."""

    class Nested(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    build = lambda params: torch.optim.SGD(params, lr=0.1)
    expected = by_hand(build)
    for closed in (False, True):
        model = tiny()
        optimizer = Nested(model.parameters(), lr=0.1)
        agc = AGC(optimizer, clip=0.02)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss_of(model).backward()

        for _ in range(3):
            if closed:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        assert agc.steps == 3 and agc.stats.clipped_share() > 0
        for p, q in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p, q)


def test_the_stats_describe_the_last_call_of_a_closure_that_is_called_twice():
    class Twice(torch.optim.Optimizer):
        def step(self, closure=None):
            closure(), closure()

    p = nn.Parameter(torch.ones(1))
    optimizer, sizes = Twice([p], {}), iter([4.0, 2.0])
    agc = AGC(optimizer)

    def closure():
        p.grad = torch.full_like(p, next(sizes))

    optimizer.step(closure)
    assert agc.stats.ratios().tolist() == [2.0] and agc.steps == 1 and p.grad.item() == pytest.approx(0.01)


def test_a_step_that_fails_does_not_count():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise MemoryError

    model = tiny()
    loss_of(model).backward()
    optimizer = Failing(model.parameters(), lr=0.1)
    agc = AGC(optimizer)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert agc.steps == 0


def test_gradients_as_an_argument_of_step_are_refused():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    AGC(optimizer)
    with pytest.raises(WorkbenchError, match=r"\blist\b.*closure.*clip_grad_agc_"):
        optimizer.step([torch.ones(1)])


# ---- steps that AGC does not see


def test_the_stats_tell_that_no_step_was_seen():
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    agc = AGC(optimizer)
    loss_of(model).backward()
    with pytest.warns(UserWarning, match="AdamW.*clip_grad_agc_"):
        stats = agc.stats
    assert not stats.seen and stats.units == agc.steps == 0 and len(stats.table()) == 0
    optimizer.step()
    assert agc.stats.seen and agc.steps == 1


def test_appended_parameters_are_clipped_and_numbered():
    model, late = tiny(), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD(param_groups(model, clip=0.02), lr=0.0)
    agc = AGC(optimizer)
    group = optimizer.param_groups[0]
    group["params"].append(late)
    late.grad = torch.tensor([30.0, 40.0])
    loss_of(model).backward()
    optimizer.step()
    torch.testing.assert_close(late.grad, torch.tensor([0.06, 0.08]))
    assert agc.stats.table().parameter.tolist() == ["0.weight", "group 0, 1", "0.bias", "2.bias"]
    assert len(groups_table(optimizer)) == 5
