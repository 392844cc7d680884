"""Clipping of any gradient. Evidence: a reference in plain loops, and what the rule implies for every unit."""

import math

import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from workbench.optim import AGC, clip_grad_agc_, unitwise_norm

MAX = torch.finfo(torch.float32).max
LEAST = 2.0**-149  # the spacing of the smallest float32 numbers
SHAPES = st.sampled_from([(), (1,), (3,), (1, 3), (2, 1), (2, 3), (3, 2), (2, 2, 2), (2, 1, 1, 3)])
ORDINARY = st.just(0.0) | st.floats(2**-10, 2**10, width=32) | st.floats(-(2**10), -(2**-10), width=32)
ANY = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.floats(2.0**64, MAX, width=32)
CLIPS, EPS = st.sampled_from([1e-3, 0.01, 0.08, 1.0, 7.5]), st.sampled_from([1e-3, 0.5])


@st.composite
def parameters(draw, numbers=ORDINARY, shapes=SHAPES):
    """Draw a parameter with its gradient."""
    shape = draw(shapes)
    values = st.lists(numbers, min_size=math.prod(shape), max_size=math.prod(shape))
    p = torch.nn.Parameter(torch.tensor(draw(values), dtype=torch.float32).reshape(shape))
    p.grad = torch.tensor(draw(values), dtype=torch.float32).reshape(shape)
    return p


def clipped(p, clip, eps):
    """The clipped gradient of a copy."""
    q = torch.nn.Parameter(p.detach().clone())
    q.grad = p.grad.clone()
    clip_grad_agc_([q], clip=clip, eps=eps)
    return q.grad


def units(x):
    """The units of a tensor as lists of numbers: the rule in the paper's words."""
    whole = sum(n != 1 for n in x.shape) <= 1
    return [x.flatten().tolist()] if whole else [row.flatten().tolist() for row in x]


def reference(p, clip, eps):
    """The rule in plain loops, in double precision."""
    rows = []
    for w, g in zip(units(p), units(p.grad), strict=True):
        norm, limit = math.hypot(*g), clip * max(math.hypot(*w), eps)
        rows += [x if norm <= limit else x * limit / max(norm, 1e-6) for x in g]
    return torch.tensor(rows, dtype=torch.float64).reshape(p.shape)


@given(parameters(), CLIPS, EPS, st.sampled_from([1.0, 2.0**-8, 2.0**-24]), st.sampled_from([1.0, 0.0]))
def test_it_equals_the_reference_and_each_unit_is_within_its_limit_in_its_direction(p, clip, eps, size, weights):
    p.grad *= size
    p.data *= weights
    after = clipped(p, clip, eps)
    torch.testing.assert_close(after.double(), reference(p, clip, eps), rtol=2e-6, atol=1e-30)
    for w, g, new in zip(units(p), units(p.grad), units(after), strict=True):
        limit = clip * max(math.hypot(*w), eps)
        assert math.hypot(*new) <= limit * (1 + 2e-6)
        assert sum(a * b for a, b in zip(g, new, strict=True)) >= 0


@given(parameters(), CLIPS, EPS, st.sampled_from([0.5, 0.99, 0.99999]))
def test_a_unit_below_its_limit_is_unchanged_bit_for_bit(p, clip, eps, share):
    limits = [
        clip * max(math.hypot(*w), eps) / max(math.hypot(*g), eps) for w, g in zip(units(p), units(p.grad), strict=True)
    ]
    scale = torch.tensor(limits).view(-1, *[1] * (p.ndim - 1)) if len(limits) > 1 else limits[0]
    p.grad *= share * scale
    assert torch.equal(clipped(p, clip, eps), p.grad)


@given(parameters(), CLIPS, EPS)
def test_a_second_time_changes_nothing_beyond_rounding(p, clip, eps):
    once = clipped(p, clip, eps)
    p.grad = once.clone()
    torch.testing.assert_close(clipped(p, clip, eps), once, rtol=1e-6, atol=0.0)


@given(parameters(), CLIPS, EPS, st.integers(-6, 20))
def test_weights_and_gradients_in_another_unit_of_measure_are_clipped_alike(p, clip, eps, power):
    scale = 2.0**power
    scaled = torch.nn.Parameter(p.detach() * scale)
    scaled.grad = p.grad * scale
    assert torch.equal(clipped(scaled, clip, eps * scale), clipped(p, clip, eps) * scale)


@given(parameters(ANY), st.sampled_from([1e-3, 0.01, 1.0]), EPS)
@example(torch.nn.Parameter(torch.zeros(2, 3)), 0.01, 1e-3)
def test_numbers_of_any_size_stay_finite_and_within_the_limit(p, clip, eps):
    if p.grad is None:
        p.grad = torch.full_like(p, MAX)
    after, norm = clipped(p, clip, eps), unitwise_norm(p.grad)
    assert after.isfinite().all() and norm.isfinite().all()
    for w, g, new in zip(units(p), units(p.grad), units(after), strict=True):
        true, limit = math.hypot(*g), clip * max(math.hypot(*w), eps)
        beyond = max(1.0, true / MAX)  # a norm beyond the largest number counts as that number
        rounding = limit * 2e-6 + (true + len(g)) * LEAST  # the factor may be one of the smallest numbers
        assert math.hypot(*new) <= limit * beyond + rounding


@given(parameters(ANY, st.sampled_from([(2, 3), (3, 2, 2)])), parameters(ANY | st.just(math.nan)), st.data())
def test_other_units_and_other_parameters_have_no_effect(p, other, data):
    q = torch.nn.Parameter(p.detach().clone())
    q.grad = p.grad.clone()
    numbers = data.draw(st.lists(ANY | st.sampled_from([math.inf, math.nan, 0.0]), min_size=2, max_size=2))
    with torch.no_grad():
        q[1], q.grad[1] = numbers
    alone = clipped(p, 0.01, 1e-3)
    clip_grad_agc_([other, q])
    assert torch.equal(q.grad[0], alone[0])


@given(parameters(shapes=st.sampled_from([(4, 2, 2), (2, 3)])), CLIPS)
def test_units_on_dimension_1_are_clipped_as_the_transposed_parameter(p, clip):
    turned = torch.nn.Parameter(p.detach().transpose(0, 1).contiguous())
    turned.grad = p.grad.transpose(0, 1).contiguous()
    clip_grad_agc_([{"params": [p], "clip": clip, "units": 1}])
    torch.testing.assert_close(p.grad, clipped(turned, clip, 1e-3).transpose(0, 1), rtol=1e-6, atol=0.0)


@given(st.lists(parameters(), min_size=1, max_size=3), CLIPS, st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_step_with_agc_is_the_step_of_the_clipped_gradients(params, clip, exempt):
    assume(sum(p.numel() for p in params) > 0)
    expected = [
        p.detach() - (p.grad if free else clipped(p, clip, 1e-3)) for p, free in zip(params, exempt, strict=False)
    ]
    groups = [{"params": [p], "clip": None if free else clip} for p, free in zip(params, exempt, strict=False)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    AGC(optimizer)
    optimizer.step()
    for p, value in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-6, atol=1e-9)
