"""Curvature.

Evidence: quadratics by hand, the dense Hessian of torch.func, and power iteration on differences of gradients in double
precision. Descent converges just below the limit and diverges just above. The model stays unchanged.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.foreign import SmallViT
from support.unchanged import unchanged
from torch import nn

from workbench.errors import WorkbenchError
from workbench.models import create_model
from workbench.models.once import standardized_once
from workbench.probes import hessian_eigenvalues, stability_limit


class Weights(nn.Module):
    """Module with a single vector of weights."""

    def __init__(self, *values: float, dtype=torch.float64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=dtype))


def diagonal(eigenvalues):
    """Make the loss 0.5 sum of s_i w_i^2, whose Hessian has the eigenvalues s_i."""
    return lambda model: 0.5 * (torch.as_tensor(eigenvalues, dtype=model.w.dtype) * model.w.square()).sum()


def test_eigenvalues_of_a_quadratic_by_hand():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    loss = lambda model: 0.5 * model.w @ matrix @ model.w
    assert hessian_eigenvalues(Weights(5.0, -7.0), loss, 2) == pytest.approx([3, 1], abs=1e-12)
    assert hessian_eigenvalues(Weights(0.0, 0.0), loss) == pytest.approx([3], abs=1e-12)


def test_the_largest_eigenvalues_are_chosen_by_value_not_by_magnitude():
    values = [-500.0, *torch.linspace(-9, 0.5, 60).tolist(), 2.0, 3.0]
    assert hessian_eigenvalues(Weights(*values), diagonal(values), 2, tol=1e-8) == pytest.approx([3, 2], rel=1e-6)
    assert hessian_eigenvalues(Weights(1.0, 1.0), diagonal([-4.0, -1.0])) == pytest.approx([-1])


def test_only_parameters_that_require_a_gradient_count():
    model = nn.Module()
    model.a, model.frozen, model.unused = Weights(*[1.0] * 30), Weights(1.0), Weights(1.0)
    model.frozen.w.requires_grad_(False)
    loss = lambda m: 3 * m.a.w.square().sum() + 100 * m.frozen.w.square().sum() + m.a.w[0] * m.frozen.w[0]
    assert hessian_eigenvalues(model, loss) == pytest.approx([6])
    assert hessian_eigenvalues(model, loss, 31)[-2:] == pytest.approx([6, 0])


def test_a_linear_loss_has_no_curvature():
    assert hessian_eigenvalues(Weights(*range(50)), lambda m: 2 * m.w.sum(), 3) == [0, 0, 0]
    assert hessian_eigenvalues(Weights(*[0.0] * 50), lambda m: m.w.pow(3).sum()) == [0]
    model = nn.ModuleList([Weights(*range(50)), Weights(*range(50))])
    assert hessian_eigenvalues(model, lambda m: m[0].w.square().sum() + m[1].w.sum()) == pytest.approx([2])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's forward mode
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_eigenvalues_of_a_small_network_equal_those_of_the_dense_hessian(dtype, digits):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    x, y = torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,))
    names, values = zip(*model.named_parameters(), strict=True)

    def flat_loss(flat):
        parts = flat.split([v.numel() for v in values])
        weights = {name: part.view_as(v) for name, part, v in zip(names, parts, values, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model.double(), weights, x.double()), y)

    loss = lambda m: F.cross_entropy(m(x), y)
    eigenvalues = hessian_eigenvalues(model, loss, 5, tol=1e-9)
    dense = torch.func.hessian(flat_loss)(torch.cat([v.detach().flatten() for v in values]).double())
    assert eigenvalues == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:5].tolist(), rel=digits)


def largest_by_power_iteration(model, loss, steps: int) -> float:
    """Compute the eigenvalue of largest magnitude from differences of gradients, without second derivatives."""
    params, step = list(model.parameters()), 1e-8  # a longer step crosses kinks of ReLU
    v = [torch.randn_like(p) for p in params]
    for _ in range(steps):
        norm = math.sqrt(sum(part.square().sum() for part in v))
        v = [part / norm for part in v]
        sides = []
        for h in (step, -2 * step):
            with torch.no_grad():
                torch._foreach_add_(params, v, alpha=h)
            sides.append(torch.autograd.grad(loss(model), params))
        with torch.no_grad():
            torch._foreach_add_(params, v, alpha=step)
        hv = [(up - down) / (2 * step) for up, down in zip(*sides, strict=True)]
        value = sum((a * b).sum() for a, b in zip(v, hv, strict=True)).item()
        v = hv
    return value


@pytest.mark.parametrize(("name", "seed"), [("nf_resnet_tiny", 0), ("resnet_tiny", 3), ("attention", 3)])
def test_eigenvalues_of_networks_equal_those_of_power_iteration(name, seed):
    """This covers scaled weight standardisation, BatchNorm in training mode, and attention."""
    torch.manual_seed(seed)  # seeds with a large gap to the second eigenvalue, so that the iteration converges
    model = SmallViT() if name == "attention" else create_model(name, 10)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    loss = lambda m: F.cross_entropy(m(x.to(next(m.parameters()))), y)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):  # leave the start, where skip gains are 0
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    single, double = hessian_eigenvalues(model, loss), hessian_eigenvalues(model.double(), loss, tol=1e-6)
    reference = largest_by_power_iteration(copy.deepcopy(model), loss, steps=60)
    assert double == pytest.approx([reference], rel=1e-6)
    assert single == pytest.approx(double, rel=1e-3)


def test_all_products_use_the_same_dropout():
    values = torch.arange(1, 101.0)
    loss = lambda m: diagonal(values)(type("Dropped", (), {"w": F.dropout(m.w, 0.5)}))
    model = Weights(*[1.0] * 100, dtype=torch.float32)
    torch.manual_seed(7)
    kept = F.dropout(torch.ones(100), 0.5)  # 0 or 2, so that s becomes 0 or 4 s
    torch.manual_seed(7)
    assert hessian_eigenvalues(model, loss, 3, tol=1e-6) == pytest.approx(
        (kept.square() * values).sort(descending=True).values[:3].tolist(), rel=1e-5
    )
    assert hessian_eigenvalues(model, loss, 3) == hessian_eigenvalues(model, loss, 3)


def test_the_model_stays_unchanged():
    model = create_model("resnet_tiny", 10, dropout=0.5, stochastic_depth=0.5).train()
    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    loss = lambda m: F.cross_entropy(m(x), y)
    loss(model).backward()
    pending = loss(model)
    with unchanged(model), torch.no_grad():
        hessian_eigenvalues(model, loss, max_products=60)
        assert not torch.is_grad_enabled()
    pending.backward()


def test_too_few_products_are_refused():
    values = np.linspace(1, 2, 400)
    with pytest.raises(WorkbenchError, match=r"25 .* k=1 .* 1e-09.*`max_products`"):
        hessian_eigenvalues(Weights(*values), diagonal(values), tol=1e-9, max_products=25)
    assert hessian_eigenvalues(Weights(*values), diagonal(values), max_products=25) == pytest.approx([2], rel=1e-2)


def test_bad_arguments_and_losses_without_curvature_are_refused():
    model, loss = Weights(1.0, 2.0), diagonal([1.0, 2.0])
    cases = [
        (model, loss, {"k": 0}, "`k` .* 1 to 2, .* 0"),
        (model, loss, {"k": 3}, "`k` .* 1 to 2, .* 3"),
        (model, loss, {"tol": 0.0}, "`tol` .* 0.0, "),
        (model, loss, {"max_products": 0}, "`max_products` .* 1, .* 0"),
        (model, lambda m: m.w, {}, "shape .2,."),
        (model, lambda m: m.w.sum().item(), {}, "float[.]"),
        (model, lambda m: torch.tensor(1.0), {}, "1, which .* parameters"),
        (model, lambda m: m.w.sum() * math.nan, {}, "nan[.]"),
        (Weights(1.0, dtype=torch.bfloat16), loss, {}, "torch.bfloat16.*model.float"),
        (Weights(1.0).requires_grad_(False), loss, {}, "model.requires_grad_"),
        (Weights(0.0, 0.0), lambda m: m.w.square().sum().pow(0.75), {}, "second derivative .* finite"),
    ]
    for tested, function, arguments, offending in cases:
        with pytest.raises(WorkbenchError, match=offending):
            hessian_eigenvalues(tested, function, **arguments)


def test_a_call_within_standardized_once_is_refused():
    model = create_model("nf_resnet_tiny", 10)
    with standardized_once(model), pytest.raises(WorkbenchError, match=r"curvature.*standardized_once"):
        hessian_eigenvalues(model, lambda m: m(torch.randn(2, 3, 16, 16)).square().mean())


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_eigenvalues():
    model, x = create_model("nf_resnet_tiny", 10, skip_gain=1.0).double(), torch.randn(8, 3, 16, 16).double()
    loss = lambda m: m(x.to(next(m.parameters()).device)).square().mean()
    cpu = hessian_eigenvalues(model, loss, 2, tol=1e-6)
    state = torch.cuda.get_rng_state()
    assert hessian_eigenvalues(model.cuda(), loss, 2, tol=1e-6) == pytest.approx(cpu, rel=1e-5)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_descent_converges_below_the_stability_limit_and_diverges_above(momentum, nesterov, weight_decay):
    loss = diagonal([0.5, 2.0, 7.0])
    for share, converges in ((0.98, True), (1.02, False)):
        model = Weights(1.0, 1.0, 1.0)
        (sharpness,) = hessian_eigenvalues(model, loss)
        lr = share * stability_limit(momentum, nesterov=nesterov) / (sharpness + weight_decay)
        momentum_of = {"momentum": momentum, "nesterov": nesterov and momentum > 0}
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay, **momentum_of)
        for _ in range(1000):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        assert (model.w.norm() < 1e-3) if converges else (model.w.norm() > 1e3)


@pytest.mark.parametrize(("momentum", "nesterov", "lr"), [(0.0, False, 0.1), (0.5, False, 0.15), (0.5, True, 0.08)])
def test_training_reaches_the_edge_of_stability_and_stays(momentum, nesterov, lr):
    """The paper's finding, on a network of 2,500 weights and 100 samples, with the full batch."""
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    x, y = torch.randn(100, 20).double(), torch.randn(100, 1).double()
    loss = lambda m: 0.5 * (m(x) - y).square().mean()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov)
    shares = []  # of the limit
    for step in range(1201):
        if step % 100 == 0:
            (sharpness,) = hessian_eigenvalues(model, loss)
            shares.append(lr * sharpness / stability_limit(momentum, nesterov=nesterov))
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    assert shares[0] < 0.2
    assert shares[-5:] == pytest.approx([1] * 5, abs=0.06)


def test_stability_limits_by_hand():
    assert [stability_limit(), stability_limit(0.9), stability_limit(0.9, nesterov=True)] == pytest.approx(
        [2, 3.8, 3.8 / 2.8]
    )
    for momentum in (-0.1, 1.0, math.nan):
        with pytest.raises(WorkbenchError, match=f"`momentum` .* {momentum}"):
            stability_limit(momentum)
