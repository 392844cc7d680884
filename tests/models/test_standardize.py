"""Standardised weights.

Evidence: the formula written out, its first and second derivatives, and a scope that never returns stale weights.
"""

import copy
import io
import pickle

import pytest
import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as F
from torch import func, nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.layers import ScaledStdConv2d
from workbench.models.once import standardized_once
from workbench.models.recompute import recomputed_activations
from workbench.models.standardize import standardize
from workbench.optim import AGC, EMA, SAM, clip_grad_agc_


def literally(w, row, floor, added=0.0):
    flat = w.flatten(1)
    mean = flat.mean(1, keepdim=True)
    var = (flat - mean).square().mean(1, keepdim=True)
    return ((flat - mean) * row[:, None] / (flat.shape[1] * (var + added)).clamp(min=floor).sqrt()).view(w.shape)


@pytest.fixture
def weights():
    """Six filters. The second hardly varies, so it is under the floor. The third does not vary at all."""
    torch.manual_seed(0)
    w = torch.randn(6, 4, 3, 3, dtype=torch.float64) * 0.1
    w[1] *= 1e-4
    w[2] = 0.3
    return w.requires_grad_(), torch.randn(6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rule", [{"floor": 1e-4}, {"floor": 0.0, "added": 1e-5}], ids=["floor", "added"])
def test_standardize_equals_the_formula_with_both_gradients(weights, rule):
    w, row = weights
    c = torch.randn_like(w)
    ours, theirs = standardize(w, row, **rule), literally(w, row, **rule)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad((each * c).sum(), (w, row)) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(standardize(w, row, **rule), ours)


def test_standardize_can_be_differentiated_twice(weights):
    """A Hessian-vector product needs this, also for the filter under the floor."""
    w, row = (t.detach()[[0, 1, 3]].requires_grad_() for t in weights)
    assert torch.autograd.gradcheck(lambda w, row: standardize(w, row, floor=1e-4), (w, row), eps=1e-9, rtol=1e-2)
    c = torch.randn_like(w)

    def second(fn):
        first = torch.autograd.grad((fn(w, row, floor=1e-4) * c).sum(), (w, row), create_graph=True)
        return torch.autograd.grad(first[0].sin().sum() + first[1].square().sum(), (w, row))

    for a, b in zip(second(standardize), second(literally), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_jvp_vmap_and_forward_mode_equal_the_formula(weights):
    """Forward derivatives, per-member gradients, and members that differ in the gain alone."""
    w, row = (t.detach()[[0, 1, 3]] for t in weights)
    dw, drow, ws, rows = torch.randn_like(w), torch.randn_like(row), torch.stack([w, 2 * w]), torch.stack([row, -row])
    c = torch.randn_like(w)

    def transformed(fn):
        loss = lambda w, row: (fn(w, row, floor=1e-4) * c).sin().sum()
        with fwd.dual_level():
            dual = fn(fwd.make_dual(w, dw), fwd.make_dual(row, drow), floor=1e-4)
            tangent = fwd.unpack_dual(dual).tangent
        return [
            tangent,
            *func.jvp(func.grad(loss, (0, 1)), (w, row), (dw, drow))[1],
            *func.vmap(func.grad(loss, (0, 1)))(ws, rows),
            func.vmap(lambda row: fn(w, row, floor=1e-4))(rows),
        ]

    for a, b in zip(transformed(standardize), transformed(literally), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny", "nf_regnet_b0", "timm_nf_regnet_b1"])
def test_gradients_of_stacked_networks_equal_a_loop(name):
    models = [create_model(name, 5, in_channels=1).double().eval() for _ in range(2)]
    stacked, buffers = func.stack_module_state(models)
    x, y = torch.randn(2, 1, 16, 16, dtype=torch.float64), torch.arange(2)

    def loss(params, buffers):
        return F.cross_entropy(func.functional_call(models[0], (params, buffers), (x,)), y)

    gradients = func.vmap(func.grad(loss))(stacked, buffers)
    for i, model in enumerate(models):
        expected = torch.autograd.grad(loss(dict(model.named_parameters()), {}), list(model.parameters()))
        for (key, _), grad in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[key][i], grad, rtol=1e-8, atol=1e-10)


def test_a_filter_of_equal_weights_gives_zero_and_finite_gradients():
    w = torch.full((2, 9), 0.1, requires_grad=True)
    out = standardize(w, torch.ones(2), floor=1e-4)
    assert out.abs().max() < 1e-5
    (out * torch.randn(2, 9)).sum().backward()
    assert w.grad.isfinite().all()


def test_half_precision_is_standardised_in_float32():
    w, row = torch.randn(4, 8, 3, 3).bfloat16(), torch.ones(4).bfloat16()
    wanted = literally(w.float(), row.float(), 1e-4).bfloat16()
    assert torch.equal(standardize(w, row, floor=1e-4), wanted)


# ---- once


def net(**args):
    return create_model("nf_resnet_tiny", 10, in_channels=1, skip_gain=1.0, **args).double()


def data(n=8):
    return torch.randn(n, 1, 28, 28, dtype=torch.float64), torch.arange(n) % 10


def test_micro_batches_in_a_scope_give_the_same_gradient_as_without(monkeypatch):
    model, (x, y), calls = net(), data(), []
    original = ScaledStdConv2d.standardized_weight
    monkeypatch.setattr(ScaledStdConv2d, "standardized_weight", lambda self: (calls.append(1), original(self))[1])

    def gradients():
        for part, labels in zip(x.split(2), y.split(2), strict=True):
            F.cross_entropy(model(part), labels).backward()

    gradients()
    wanted, without = [p.grad.clone() for p in model.parameters()], len(calls)
    model.zero_grad()
    with standardized_once(model):
        gradients()
        assert model.blocks[0].conv0.weight.grad is None  # the gradient arrives at the end of the scope
    assert len(calls) - without == without / 4  # once, not for each of four
    for p, want in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=1e-15)


def test_a_scope_leaves_nothing_behind_even_after_an_error():
    model, (x, _) = net(), data()
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    with pytest.raises(ZeroDivisionError), standardized_once(model):
        raise ZeroDivisionError
    with torch.no_grad(), standardized_once(model):
        model(x)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert not any(vars(p) for p in model.parameters())
    model.train().eval()
    copy.deepcopy(model)


def test_a_fused_step_between_two_scopes_is_seen():
    """Fused optimizers do not increase version counters, so a cache that trusts them would be stale here."""
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=True)
    for training in (True, False):  # training in evaluation mode, too
        model.train(training)
        for _ in range(2):
            optimizer.zero_grad()
            with standardized_once(model):
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad(), standardized_once(model):
                inside = model(x)
            torch.testing.assert_close(inside, copy.deepcopy(model)(x).detach(), rtol=1e-12, atol=1e-12)


def test_compiled_inside_and_outside_of_scopes():
    from torch._dynamo.utils import counters

    model, (x, _) = net().eval(), data()
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(compiled(x), model(x))
            with standardized_once(model):
                torch.testing.assert_close(compiled(x), model(x))
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]  # one inside, one outside


def changes(model):
    x, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipped = torch.optim.SGD(model.parameters(), lr=0.1)
    AGC(clipped)
    ema, sam, uphill = EMA(model), SAM(model.parameters()), SAM(model.parameters())
    F.cross_entropy(model(x), y).backward()
    uphill.ascend()
    F.cross_entropy(model(x), y).backward()
    state = copy.deepcopy(model.state_dict())
    return {
        "train": lambda: model.train(),
        "eval": lambda: model.eval(),
        "train of a part": lambda: model.blocks[0].train(),
        "load_state_dict": lambda: model.load_state_dict(state),
        "deepcopy": lambda: copy.deepcopy(model),
        "pickle": lambda: pickle.dumps(model),
        "save": lambda: torch.save(model, io.BytesIO()),
        "optimizer": optimizer.step,
        "AGC's optimizer": clipped.step,
        "AGC": lambda: clip_grad_agc_(model.parameters()),
        "EMA": ema.update,
        "SAM up": sam.ascend,
        "SAM down": uphill.descend,
        "another scope": lambda: standardized_once(model).__enter__(),
    }


@pytest.mark.parametrize("what", list(changes(net())))
def test_changes_of_the_weights_are_refused_in_a_scope(what):
    model = net()
    change = changes(model)[what]
    before = copy.deepcopy(model.state_dict())
    with standardized_once(model), pytest.raises(WorkbenchError, match="standardized_once"):
        change()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_backward_after_the_scope_is_refused_and_not_silently_lost():
    model, (x, y) = net(), data()
    with standardized_once(model):
        loss = F.cross_entropy(model(x), y)
    with pytest.raises(WorkbenchError, match=r"`backward`.*standardized_once"):
        loss.backward()


def test_a_weight_written_to_by_hand_is_noticed():
    model, (x, _) = net().eval(), data()
    with (
        pytest.raises(WorkbenchError, match=r"weight.*standardized_once.*value"),
        torch.no_grad(),
        standardized_once(model),
    ):
        model(x)
        model.blocks[0].conv0.weight.mul_(2)
    model(x)


def test_an_optimizer_of_another_model_still_steps():
    model, other = net(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with standardized_once(model):
        other(torch.ones(1, 2)).sum().backward()
        optimizer.step()


# ---- recomputed activations


@pytest.mark.parametrize("name", ["nfnet_micro", "nf_resnet_tiny", "resnet_tiny", "nf_regnet_b0"])
def test_recomputed_activations_change_no_bit(name):
    model, x, y = create_model(name, 10), torch.randn(4, 3, 32, 32), torch.arange(4)

    def gradients(recompute):
        torch.manual_seed(0)
        model.zero_grad()
        if recompute:
            with recomputed_activations(model):
                loss = F.cross_entropy(model(x), y)
        else:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


def test_recomputed_activations_are_not_kept():
    model, x, kept = create_model("nfnet_micro", 10), torch.randn(2, 3, 32, 32), []
    outputs = []
    original = model.blocks[0].act

    def act(x):
        outputs.append(original(x))
        return outputs[-1]

    for block in model.blocks:
        block.act = act

    def alive(scope):
        import contextlib
        import weakref

        outputs.clear()
        with scope(model) if scope else contextlib.nullcontext():
            out = model(x)
        kept[:] = [weakref.ref(o) for o in outputs]
        outputs.clear()
        n = sum(k() is not None for k in kept)
        out.sum().backward()
        return n

    assert alive(None) > 0
    assert alive(recomputed_activations) == 0
