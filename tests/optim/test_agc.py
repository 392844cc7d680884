"""Tests of AGC. Evidence: 3-4-5 arithmetic, a slow loop over units, properties and errors."""

import io
import math

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import AGC, SAM, clip_grad_agc_, param_groups, unitwise_norm


def param(weight, grad):
    p = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    p.grad = torch.tensor(grad, dtype=torch.float64)
    return p


def slow_agc(p, clip, eps):
    """Apply the rule unit by unit, in Python floats."""
    g = p.grad.clone()
    vector = p.squeeze().ndim <= 1
    units = [(p.detach(), g)] if vector else [(p.detach()[i], g[i]) for i in range(p.shape[0])]
    for w_i, g_i in units:
        w_norm, g_norm = (math.sqrt(sum(v * v for v in t.flatten().tolist())) for t in (w_i, g_i))
        limit = clip * max(w_norm, eps)
        if g_norm > limit:
            g_i.mul_(limit / max(g_norm, 1e-6))
    return g


def test_rows_above_the_limit_are_clipped_and_rows_at_the_limit_are_not():
    # |W| = 5 in both rows and clip 0.5 give a limit of 2.5. Row 0 has |G| = 25, row 1 has |G| = 2.5.
    p = param([[3.0, 4.0], [3.0, 4.0]], [[7.0, 24.0], [1.5, 2.0]])
    stats = clip_grad_agc_(p, clip=0.5)
    torch.testing.assert_close(p.grad, torch.tensor([[0.7, 2.4], [1.5, 2.0]], dtype=torch.float64))
    assert stats.clipped_share() == 0.5
    assert stats.ratio_quantile(1.0) == pytest.approx(5.0)
    assert stats.ratio_quantile(0.0) == pytest.approx(0.5)


def test_a_vector_is_one_unit():
    p = param([3.0, 4.0], [30.0, 40.0])
    clip_grad_agc_(p, clip=0.1)
    torch.testing.assert_close(p.grad, torch.tensor([0.3, 0.4], dtype=torch.float64))


def test_a_gain_stored_with_extra_axes_is_still_one_unit():
    flat, shaped = param([3.0, 4.0], [30.0, 1.0]), param([[[[3.0]]], [[[4.0]]]], [[[[30.0]]], [[[1.0]]]])
    clip_grad_agc_([flat, shaped], clip=0.1)
    assert torch.equal(flat.grad, shaped.grad.flatten())


def test_a_zero_parameter_can_move_by_clip_times_eps():
    p = param([0.0, 0.0], [3.0, 4.0])
    clip_grad_agc_(p, clip=0.01, eps=1e-3)
    assert p.grad.norm().item() == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "shape", [(), (5,), (4, 3), (1, 6), (6, 1), (4, 3, 5), (4, 3, 3, 3), (3, 1, 1, 1), (1, 1, 1, 3), (3, 2, 2, 2, 2)]
)
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 100.0])
def test_clipping_equals_a_slow_loop_over_units_at_any_rank(shape, scale):
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    p.grad = scale * torch.randn(shape, dtype=torch.float64)
    expected = slow_agc(p, 0.02, 1e-3)
    clip_grad_agc_(p, clip=0.02)
    torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=0)


def test_the_units_of_a_linear_are_its_rows():
    assert unitwise_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist() == [[5.0], [2.0]]


def test_norms_of_half_precision_do_not_overflow():
    p = nn.Parameter(torch.full((2, 64), 300.0, dtype=torch.float16))
    p.grad = torch.full_like(p, 200.0)
    clip_grad_agc_(p, clip=0.1)
    torch.testing.assert_close(p.grad, torch.full_like(p, 30.0), rtol=1e-3, atol=0)


def test_an_infinite_threshold_changes_nothing_and_clipping_twice_equals_clipping_once():
    p = nn.Parameter(torch.randn(8, 9))
    p.grad = torch.randn(8, 9)
    before = p.grad.clone()
    clip_grad_agc_(p, clip=math.inf)
    assert torch.equal(p.grad, before)
    clip_grad_agc_(p, clip=0.01)
    once = p.grad.clone()
    clip_grad_agc_(p, clip=0.01)
    torch.testing.assert_close(p.grad, once, rtol=1e-6, atol=0)


def test_channels_last_gives_the_same_gradients():
    p, q = (nn.Parameter(torch.arange(96.0).view(4, 2, 3, 4)) for _ in range(2))
    q.data = q.data.to(memory_format=torch.channels_last)
    grad = torch.randn(4, 2, 3, 4)
    p.grad, q.grad = grad.clone(), grad.clone(memory_format=torch.channels_last)
    clip_grad_agc_([p, q], clip=0.001)
    torch.testing.assert_close(p.grad, q.grad.contiguous())


def test_parameters_without_gradient_are_skipped_and_shared_parameters_are_clipped_once():
    frozen = nn.Parameter(torch.ones(3))
    shared = param([3.0, 4.0], [30.0, 40.0])
    stats = clip_grad_agc_([frozen, shared, shared], clip=1.0)
    assert frozen.grad is None
    assert sum(g.numel() for g in stats.grad_norms) == 1
    assert shared.grad.norm().item() == pytest.approx(5.0)


def test_an_empty_list_of_parameters_gives_empty_stats():
    stats = clip_grad_agc_([])
    assert (stats.clipped_share(), stats.ratio_quantile(0.99)) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_threshold_must_be_positive(bad):
    with pytest.raises(WorkbenchError, match=rf"`clip`.*0.*{bad}"):
        clip_grad_agc_(param([1.0], [1.0]), clip=bad)


def test_the_errors_for_sparse_and_complex_gradients_name_the_solution():
    embedding = nn.Embedding(4, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(WorkbenchError, match="sparse=False"):
        clip_grad_agc_(embedding.weight)
    wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    wave.grad = torch.ones_like(wave)
    with pytest.raises(WorkbenchError, match="view_as_real"):
        clip_grad_agc_(wave)


# ---- values that are not finite, or nearly so


@pytest.mark.parametrize("large", [1e20, 1e30, 3e38])
@pytest.mark.parametrize("shape", [(4, 3), (12,), (4, 200, 100)])
@pytest.mark.parametrize("share", ["one element", "all elements"])
def test_large_gradients_are_clipped_to_the_limit_without_overflow(large, shape, share):
    p = nn.Parameter(torch.ones(shape))
    p.grad = torch.full(shape, 1e-6)
    if share == "one element":
        p.grad.view(-1)[0] = large
    else:
        p.grad.fill_(large / math.prod(shape) ** 0.5)
    stats = clip_grad_agc_(p, clip=0.01)
    unit = p.grad[0] if len(shape) > 1 else p.grad
    assert unit.norm().item() == pytest.approx(
        0.01 * p[0].norm().item() if len(shape) > 1 else 0.01 * p.norm().item(), rel=1e-2
    )
    assert p.grad.isfinite().all() and not stats.not_finite()
    if share == "one element" and len(shape) > 1:
        assert (p.grad[1:] == 1e-6).all()  # the other rows are as they were


def test_large_norms_are_exact_and_others_keep_their_bits():
    x = torch.randn(6, 40)
    x[2] *= 1e25
    expected = torch.linalg.vector_norm(x.double(), dim=1)
    norms = unitwise_norm(x).flatten()
    torch.testing.assert_close(norms.double(), expected, rtol=1e-6, atol=0)
    plain = torch.linalg.vector_norm(x, dim=1)
    assert plain[2].isinf() and torch.equal(norms[[0, 1, 3, 4, 5]], plain[[0, 1, 3, 4, 5]])
    assert unitwise_norm(1e200 * torch.ones(2, 2, dtype=torch.float64)).flatten().tolist() == pytest.approx(
        [2**0.5 * 1e200] * 2
    )


def test_norms_that_must_not_wait_for_the_device_equal_those_of_the_cpu(monkeypatch):
    tensors = [torch.randn(6, 40), torch.randn(9), torch.randn(1, 1)]
    tensors[0][2] *= 1e25
    tensors[0][3, 0] = math.inf
    tensors[1][0] = 1e30
    expected = [unitwise_norm(x) for x in tensors]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert all(torch.equal(unitwise_norm(x), norm) for x, norm in zip(tensors, expected, strict=True))
    assert expected[0].flatten()[3].isinf() and expected[1].isfinite()


def test_large_weights_do_not_switch_clipping_off():
    p = nn.Parameter(torch.full((2, 4), 1e25))
    p.grad = torch.full((2, 4), 1e30)
    clip_grad_agc_(p, clip=0.01)
    torch.testing.assert_close(p.grad, torch.full((2, 4), 1e23))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(4, 3), (12,), (200, 400), (200, 20, 5, 5)])
def test_a_unit_that_is_not_finite_becomes_nan_as_a_whole_and_shows_in_the_stats(value, shape):
    p, q = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.ones(5, 2))
    p.grad, q.grad = torch.full(shape, 1e-6), torch.full((5, 2), 1e-6)
    p.grad.view(-1)[1] = value
    stats = clip_grad_agc_([q, p], clip=0.01)
    first = p.grad[0] if len(shape) > 1 else p.grad
    assert first.isnan().all()
    if len(shape) > 1:
        assert (p.grad[1:] == 1e-6).all()
    assert (q.grad == 1e-6).all()
    assert stats.not_finite() == {"1": 1}


def test_error_if_nonfinite_names_the_parameter_and_changes_nothing():
    p, q = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    p.grad, q.grad = torch.full((3, 2), 100.0), torch.full((3, 2), 100.0, dtype=torch.float64)
    q.grad[2, 0] = math.nan
    before = p.grad.clone(), q.grad.clone()
    with pytest.raises(WorkbenchError, match=r"\b1 \(1 units\)"):
        clip_grad_agc_([p, q], clip=0.01, error_if_nonfinite=True)
    for grad, old in zip((p.grad, q.grad), before, strict=True):
        torch.testing.assert_close(grad, old, rtol=0, atol=0, equal_nan=True)
    q.grad[2, 0] = 100.0
    assert clip_grad_agc_([p, q], clip=0.01, error_if_nonfinite=True).clipped_share() == 1.0


def test_agc_hands_on_a_gradient_that_is_not_finite_so_that_the_loss_shows_it():
    model = tiny()
    optimizer = torch.optim.SGD(param_groups(model, clip=0.01), lr=0.1)
    agc = AGC(optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].weight.grad[1, 2] = math.nan
    optimizer.step()
    assert model[0].weight[1].isnan().all() and model[0].weight[[0, 2]].isfinite().all()
    assert agc.stats.not_finite() == {"0.weight": 1}


# ---- groups instead of an optimizer


def test_the_function_on_groups_equals_agc_around_an_optimizer():
    gradients = []
    for by_function in (True, False):
        model = tiny()
        model(torch.linspace(-9, 9, 32).view(8, 4)).square().sum().backward()
        groups = param_groups(model, clip=0.02, overrides={"0.bias": {"clip": 0.5, "clip_eps": 2.0}})
        if by_function:
            stats = clip_grad_agc_(groups)
        else:
            optimizer = torch.optim.SGD(groups, lr=0.0)
            agc = AGC(optimizer)
            optimizer.step()
            stats = agc.stats
        gradients.append([p.grad for p in model.parameters()])
        assert stats.table().parameter.tolist() == ["0.weight", "0.bias", "2.bias"]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_groups_without_a_threshold_use_the_arguments_and_functions_are_refused():
    p = param([3.0, 4.0], [30.0, 40.0])
    clip_grad_agc_([{"params": [p]}], clip=0.1, eps=10.0)
    assert p.grad.tolist() == pytest.approx([0.6, 0.8])
    with pytest.raises(WorkbenchError, match=r"'late'.*AGC\(optimizer\)"):
        clip_grad_agc_([{"params": [p], "clip": schedule, "name": "late"}])
    with pytest.raises(WorkbenchError, match="str"):
        clip_grad_agc_(["weight"])


def test_the_flattened_parameters_of_fully_sharded_data_parallel_are_refused():
    model = tiny()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    AGC(optimizer)
    model[0].weight._fsdp_flattened = True  # as torch marks them
    for use in (
        lambda: clip_grad_agc_(model.parameters()),
        lambda: param_groups(model),
        lambda: SAM(model.parameters()),
        optimizer.step,
    ):
        with pytest.raises(WorkbenchError, match=r"FullyShardedDataParallel.*fully_shard"):
            use()


# ---- telemetry


def test_the_table_equals_a_calculation_by_hand():
    # ratios |G| / |W|: 5 and 0.5 in the rows, 2 in the vector
    rows = param([[3.0, 4.0], [3.0, 4.0]], [[7.0, 24.0], [1.5, 2.0]])
    vector = param([3.0, 4.0], [6.0, 8.0])
    stats = clip_grad_agc_([rows, vector], clip=1.0)
    table = stats.table(ladder=(0.4, 1.0, 3.0, 6.0), quantiles=(0.5, 1.0)).set_index("parameter")
    assert table.loc["0"].tolist() == [2, 0.5, 5.0, 5.0, 1.0, 0.5, 0.5, 0.0]  # units, clipped, q50 and q100, the ladder
    assert table.loc["1"].tolist() == [1, 1.0, 2.0, 2.0, 1.0, 1.0, 0.0, 0.0]
    assert [stats.would_clip(c) for c in (0.4, 1.0, 3.0, 6.0)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert stats.clipped_share() == stats.would_clip(1.0)


def test_would_clip_equals_the_share_that_the_threshold_clips():
    torch.manual_seed(3)
    weights, grads = torch.randn(50, 7), torch.randn(50, 7) * torch.logspace(-3, 1, 50)[:, None]
    p = nn.Parameter(weights.clone())
    p.grad = grads.clone()
    stats = clip_grad_agc_(p, clip=0.02)
    for other in (0.005, 0.02, 0.1, 1.0):
        p.grad = grads.clone()
        assert clip_grad_agc_(p, clip=other).clipped_share() == stats.would_clip(other)


def test_the_table_names_the_parameters():
    model = tiny()
    optimizer = torch.optim.SGD(param_groups(model, clip=0.02), lr=0.1)
    agc = AGC(optimizer)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert agc.stats.table().parameter.tolist() == ["0.weight", "0.bias", "2.bias"]  # the classifier's weight is exempt
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    other = AGC(named)
    named.step()
    assert other.stats.table().parameter.tolist() == [name for name, _ in model.named_parameters()]


def test_clipping_reads_no_value_from_the_device(monkeypatch):
    p = nn.Parameter(torch.randn(5, 3))
    p.grad = torch.randn(5, 3)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the clipping read a value"))
    stats = clip_grad_agc_([p], clip=0.01)
    monkeypatch.undo()
    assert stats.units == 5


# ---- around an optimizer


def schedule(step):
    return 0.1 if step < 1 else 0.2


def tiny():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def test_agc_clips_the_raw_gradient_before_decay_and_momentum():
    p = nn.Parameter(torch.tensor([[3.0, 4.0]] * 2, dtype=torch.float64))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    AGC(optimizer, clip=0.5)
    w, m = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for _ in range(2):
        p.grad = torch.tensor([[7.0, 24.0]] * 2, dtype=torch.float64)
        g = torch.tensor([7.0, 24.0], dtype=torch.float64) * (0.5 * w.norm() / 25)  # clip
        g = g + 0.01 * w  # then decay
        m = 0.9 * m + g  # then momentum
        w = w - 0.1 * (g + 0.9 * m)  # Nesterov
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.stack([w, w]))


def test_a_groups_clip_is_its_threshold_and_none_exempts_it():
    model = tiny()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "clip": 0.02}, {"params": model[2].parameters(), "clip": None}],
        lr=0.0,
        momentum=0.9,
    )
    agc = AGC(optimizer)
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    optimizer.step()
    for p in model[0].parameters():
        limit = 0.02 * unitwise_norm(p).clamp_min(1e-3)
        torch.testing.assert_close(unitwise_norm(p.grad), limit)
    assert all(torch.equal(p.grad, torch.full_like(p, 100.0)) for p in model[2].parameters())
    assert agc.stats.clipped_share() == 1.0


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_agc_works_with_ordinary_optimizers_and_can_be_removed(optimizer):
    model = tiny()
    opt = optimizer(model.parameters(), lr=0.01)
    agc = AGC(opt, clip=0.01)
    model(torch.randn(8, 4)).square().sum().backward()
    opt.step()
    clipped = [p.grad.clone() for p in model.parameters()]
    agc.remove()
    for p in model.parameters():
        p.grad.mul_(1000)
    opt.step()
    assert all(torch.equal(p.grad, 1000 * g) for p, g in zip(model.parameters(), clipped, strict=True))


def test_lbfgs_and_scaled_gradients_are_refused():
    model = tiny()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    AGC(opt)
    with pytest.raises(WorkbenchError, match="LBFGS"):
        AGC(torch.optim.LBFGS(model.parameters()))
    opt.grad_scale = torch.tensor(2.0)
    with pytest.raises(WorkbenchError, match="unscale_"):
        opt.step()


def test_the_readmes_five_lines_train_a_foreign_model():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 2)
    )
    optimizer = torch.optim.SGD(param_groups(model, weight_decay=2e-5, clip=0.1), lr=0.1, momentum=0.9, nesterov=True)
    AGC(optimizer)
    x = torch.randn(64, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_groups_set_thresholds_lower_bounds_and_schedules():
    model = tiny()
    groups = [
        {"params": model[0].parameters(), "clip": 0.5, "clip_eps": 100.0},
        {"params": model[2].parameters(), "clip": lambda step: 0.1 / (1 + step)},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.0)
    AGC(optimizer)
    for step in range(2):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1000.0)
        optimizer.step()
        for p in model[0].parameters():
            torch.testing.assert_close(unitwise_norm(p.grad), torch.full_like(unitwise_norm(p), 0.5 * 100.0))
        for p in model[2].parameters():
            limit = 0.1 / (1 + step) * unitwise_norm(p).clamp_min(1e-3)
            torch.testing.assert_close(unitwise_norm(p.grad), limit)


def two_groups(**settings):
    model = tiny()
    groups = [{"params": model[0].parameters(), **settings}, {"params": model[2].parameters(), "clip": None}]
    return torch.optim.SGD([*groups, {"params": [param([3.0, 4.0], [30.0, 40.0])]}], lr=0.0)


def test_an_argument_applies_to_groups_without_that_key():
    optimizer = two_groups(clip=0.5, clip_eps=20.0)
    AGC(optimizer, clip=0.5, eps=20.0)
    optimizer.step()
    (vector,) = optimizer.param_groups[2]["params"]
    assert vector.grad.tolist() == pytest.approx([6.0, 8.0])  # norm 50, at most 0.5 * max(5, 20)


@pytest.mark.parametrize(
    ("argument", "in_group", "given"),
    [
        ("clip", {"clip": 0.02}, 0.5),
        ("clip", {"clip": 0.02}, lambda step: 0.02),
        ("clip", {"clip": schedule}, 0.1),
        ("eps", {"clip_eps": 0.25}, 0.5),
    ],
)
def test_contradicting_values_are_refused_and_leave_the_optimizer_without_clipping(argument, in_group, given):
    optimizer = two_groups(**in_group)
    (value,) = in_group.values()
    with pytest.raises(WorkbenchError) as caught:
        AGC(optimizer, **{argument: given})
    assert all(str(getattr(v, "__name__", v)) in str(caught.value) for v in (value, given))
    optimizer.step()
    assert optimizer.param_groups[2]["params"][0].grad.tolist() == [30.0, 40.0]


def test_a_loaded_state_sets_the_threshold():
    """The state wins over the groups' thresholds, with and without arguments of AGC."""
    saved = two_groups(clip=0.25, clip_eps=2.0).state_dict()
    for arguments in ({}, {"clip": 0.5, "eps": 1.0}):
        optimizer = two_groups(clip=0.5, clip_eps=1.0)
        AGC(optimizer, **arguments)
        with pytest.warns(UserWarning):  # tests/optim/test_settings.py checks the values
            optimizer.load_state_dict(saved)
        assert [(g.get("clip"), g.get("clip_eps")) for g in optimizer.param_groups[:2]] == [(0.25, 2.0), (None, None)]
        weight = optimizer.param_groups[0]["params"][0]
        weight.grad = torch.full_like(weight, 100.0)
        optimizer.step()
        torch.testing.assert_close(unitwise_norm(weight.grad), 0.25 * unitwise_norm(weight).clamp_min(2.0))


def test_states_round_trip_as_data_and_keep_exemptions():
    model = tiny()
    optimizer = torch.optim.SGD(param_groups(model, clip=schedule), lr=0.1)
    agc = AGC(optimizer)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    buffer = io.BytesIO()
    torch.save({"optimizer": state, "agc": agc.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)  # data, no code
    optimizer.load_state_dict(saved["optimizer"])
    agc.load_state_dict(saved["agc"])
    assert [g["clip"] for g in optimizer.param_groups] == [schedule, schedule, None] and agc.steps == 1

    bare = torch.optim.SGD([{"params": g["params"]} for g in optimizer.param_groups], lr=0.1).state_dict()
    optimizer.load_state_dict(bare)  # a state from before clipping was added
    assert [g["clip"] for g in optimizer.param_groups] == [schedule, schedule, None]


def test_schedulers_and_gradient_accumulation_work_with_agc():
    model, whole = tiny(), tiny()
    x, y = torch.randn(12, 4), torch.randn(12, 2)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, whole)]
    for optimizer in optimizers:
        AGC(optimizer, clip=0.05)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in optimizers]
    for _ in range(3):
        for part in (slice(0, 5), slice(5, 12)):
            (nn.functional.mse_loss(model(x[part]), y[part], reduction="sum") / y.numel()).backward()
        nn.functional.mse_loss(whole(x), y).backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    for a, b in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_compiled_step_gives_the_same_parameters():
    results = []
    for compiled in (False, True):
        model = tiny()
        optimizer = torch.optim.SGD(param_groups(model, clip=0.05), lr=0.1, momentum=0.9, nesterov=True)
        agc = AGC(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        torch.manual_seed(2)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().sum().backward()
            step()
        assert agc.steps == 3
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch._dynamo.reset()


def test_unscaled_gradients_of_a_grad_scaler_are_clipped():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    AGC(optimizer, clip=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.randn(8, 4)).square().sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for p in model.parameters():
        assert (unitwise_norm(p.grad) <= 0.01 * unitwise_norm(p).clamp_min(1e-3) * 1.0001).all()


@pytest.mark.parametrize(
    ("module", "units"),
    [(nn.Conv1d(4, 6, 3), 6), (nn.Conv3d(2, 5, 3), 5), (nn.Embedding(7, 3), 7), (nn.Linear(8, 24), 24)],
)
def test_layers_have_the_expected_number_of_units(module, units):
    assert unitwise_norm(module.weight).numel() == units


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_clipping_equals_the_slow_loop_in_every_precision(dtype):
    p = nn.Parameter(torch.randn(6, 5).to(dtype))
    p.grad = (10 * torch.randn(6, 5)).to(dtype)
    expected = slow_agc(p, 0.05, 1e-3)
    clip_grad_agc_(p, clip=0.05)
    assert p.grad.dtype == dtype
    torch.testing.assert_close(p.grad, expected, rtol={2: 2e-2, 4: 1e-5, 8: 1e-12}[dtype.itemsize], atol=1e-6)


def test_a_module_instead_of_an_optimizer_is_refused():
    with pytest.raises(WorkbenchError, match=r"`optimizer`.*Linear"):
        AGC(nn.Linear(2, 2))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.8])
@pytest.mark.parametrize("layout", ["matrix", "channels_last"])
def test_large_gradients_with_few_clipped_rows_equal_a_loop_over_all_rows(share, layout):
    """If few rows are clipped, AGC rewrites only those."""
    torch.manual_seed(0)
    shape = (200, 400) if layout == "matrix" else (200, 50, 3, 3)
    weight, grad = torch.randn(shape), torch.randn(shape)
    few = (torch.rand(200) < share).view(-1, *[1] * (len(shape) - 1))
    grad = grad * torch.where(few, 0.1, 0.001)
    if layout == "channels_last":
        weight, grad = (t.contiguous(memory_format=torch.channels_last) for t in (weight, grad))
    p = nn.Parameter(weight)
    p.grad = grad.clone(memory_format=torch.preserve_format)
    stats = clip_grad_agc_(p, clip=0.01)
    assert stats.clipped_share() == pytest.approx(few.float().mean().item())
    for row, g, w in zip(p.grad, grad, weight, strict=True):
        limit = 0.01 * w.norm()
        torch.testing.assert_close(row, g * min(1.0, (limit / g.norm()).item()))
