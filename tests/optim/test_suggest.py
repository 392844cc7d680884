"""Tests of the suggested threshold.

Evidence: ratios, gains and divergences by hand, originals that do not change by a bit, equal answers to equal calls.
A training fails without the threshold and learns with it.
"""

import copy
import math
import random
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from support.checkout import CHECKOUT
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from workbench.errors import WorkbenchError
from workbench.optim import AGC, param_groups, suggest_clip, warmup_cosine
from workbench.optim.suggest import _gain

sys.path.insert(0, str(CHECKOUT / "benchmarks"))
import suggest_clip as program

Lion = program.Lion
BUILD = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "fused sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "lion": lambda params: Lion(params, lr=0.002, weight_decay=0.1),
}


def quiet(*args, **more):
    return suggest_clip(*args, progress=False, **more)


def digits(n: int = 20, size: int = 16) -> list:
    """Make batches that a perceptron learns. The class is the largest of three sums."""
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(size, 6, generator=generator) for _ in range(n)]
    return [(x, x.view(-1, 3, 2).sum(2).argmax(1)) for x in xs]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


# ---- results by hand


class Linear(nn.Module):
    """A model whose loss is the sum of w * x, so the gradient is x.

    Every unit of w has length 1. At the start w * x = 0: only the first column of w is not 0, and only the second of x.
    """

    def __init__(self, units: int = 4):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 0.0]]).repeat(units, 1))

    def forward(self, x):
        return (self.w * x).sum()


def gradients(level: float, spike: float, at: dict[int, int], steps: int = 60) -> list:
    """Make batches whose ratio is `level`, and `spike` in the first n units of step s, for `at` = {s: n}."""
    batches = []
    for step in range(1, steps + 1):
        x = torch.tensor([[0.0, level]]).repeat(4, 1)
        x[: at.get(step, 0), 1] = spike
        batches.append((x, None))
    return batches


def output_as_loss(value, _):
    return value


def test_sgd_gets_the_threshold_at_which_a_unit_moves_by_16_percent_of_its_length():
    """Rate 0.016 and momentum 0.9 move by 0.16 of a gradient, so a threshold of 1 moves by 0.16 of the length.

    This threshold is between the level, 0.02, and the spikes, 50.
    """
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=0.016, momentum=0.9)
    suggestion = quiet(model, gradients(0.02, 50.0, {60: 4}), sgd, loss=output_as_loss)
    assert (suggestion.clip, suggestion.low, suggestion.high, suggestion.confidence) == (1.0, 0.25, 4.0, "high")
    assert "16%" in suggestion.why and suggestion.steps == 60 and suggestion.diverged_at is None


def test_at_a_small_rate_only_the_rarest_spikes_are_clipped():
    """One unit in one of 30 steps with 4 units is less than a hundredth of the units."""
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-4)
    suggestion = quiet(model, gradients(0.015, 50.0, {45: 1}), sgd, loss=output_as_loss)
    assert suggestion.clip == pytest.approx(0.015, rel=1e-3)
    assert suggestion.ladder[0.01] == 1.0 and suggestion.ladder[0.02] == pytest.approx(1 / 120)
    assert "1.5e-06" in suggestion.why and "99%" in suggestion.why


@pytest.mark.parametrize("build", [torch.optim.AdamW, Lion])
def test_if_the_step_does_not_grow_the_threshold_is_the_level_and_below_the_spikes(build):
    model = Linear()
    suggestion = quiet(
        model, gradients(0.02, 5.0, {40: 4, 50: 4}), build(model.parameters(), lr=1e-6), loss=output_as_loss, seed=3
    )
    assert suggestion.clip == pytest.approx(0.02, rel=1e-3) and suggestion.clip < suggestion.high < 5.0
    assert suggestion.confidence == "medium" and "does not grow with the gradient" in suggestion.why
    assert suggestion.ladder[0.32] == pytest.approx(8 / 120)


def test_gains_equal_a_calculation_by_hand():
    """The gain is lr (1 - dampening) / (1 - momentum), with and without Nesterov."""

    def gain(build, **more):
        w = nn.Parameter(torch.ones(3))
        return _gain(build([w], **more), [more["lr"]])

    sgd = torch.optim.SGD
    for lr in (1e-7, 1e-3, 0.1, 1e3):
        assert gain(sgd, lr=lr) == pytest.approx(lr, rel=2e-3)
    assert gain(sgd, lr=0.1, momentum=0.9, weight_decay=0.5) == pytest.approx(1.0, rel=1e-4)
    assert gain(sgd, lr=0.1, momentum=0.9, nesterov=True) == pytest.approx(1.0, rel=1e-4)
    assert gain(sgd, lr=0.1, momentum=0.9, dampening=0.5) == pytest.approx(0.5, rel=1e-4)
    for build in (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, Lion):
        assert gain(build, lr=0.1) is None


def test_the_rate_of_an_exempt_group_does_not_count():
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    sgd = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 5.0, "clip": None}], lr=0.1)
    assert _gain(sgd, [0.1, 5.0]) == pytest.approx(0.1, rel=1e-4)


class Quadratic(nn.Module):
    """A model whose loss is 5 |w|^2, so every ratio is 10 for any w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))

    def forward(self, x):
        return 5 * self.w.square().sum()


def test_the_suggested_threshold_stops_a_divergence():
    """At half the rate w becomes -4 w and the loss grows 16 times. At the full rate it grows another 81 times.

    The bound is 20 times. With clipping at 0.16 and rate 1, w loses 16 % per step.
    """
    model, batches = Quadratic(), [(torch.zeros(1), None)]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    suggestion = quiet(model, batches, sgd, loss=output_as_loss, steps=8)
    assert suggestion.diverged_at == 3 and suggestion.steps == 3 + 8
    assert (suggestion.clip, suggestion.confidence) == (0.16, "medium")
    assert suggestion.ladder[0.32] == 1.0
    AGC(sgd, suggestion.clip)
    for _ in range(10):
        sgd.zero_grad()
        model(None).backward()
        sgd.step()
    assert model.w[0].norm().item() == pytest.approx(5 * 0.84**10, rel=1e-4)


def test_a_threshold_that_diverges_is_quartered_and_the_last_advice_is_a_lower_rate():
    model, batches = Quadratic(), [(torch.zeros(1), None)]
    adam = torch.optim.Adam(model.parameters(), lr=1e3)
    suggestion = quiet(model, batches, adam, loss=output_as_loss, steps=16)
    assert suggestion.confidence == "low" and "learning rate" in suggestion.why
    assert suggestion.steps <= 32 and suggestion.diverged_at is not None
    assert suggestion.clip < 10 / 4**2  # every ratio is 10
    assert suggestion.clip / suggestion.low == pytest.approx(4, rel=0.05)
    assert suggestion.high / suggestion.clip == pytest.approx(4, rel=0.05)


def test_a_run_that_learns_nothing_is_repeated_with_clipping_and_gives_low_confidence():
    """At this rate the loss falls by less than 2 % of 100, with clipping and without."""
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    suggestion = quiet(model, gradients(0.02, 0.0, {}), sgd, loss=lambda out, y: 100 + out)
    assert (suggestion.confidence, suggestion.steps, suggestion.clip, suggestion.diverged_at) == (
        "low",
        120,
        160.0,
        None,
    )
    assert "learnt nothing" in suggestion.why and "more steps" in suggestion.why


def test_dead_units_do_not_make_the_threshold_zero():
    """Two of four units never have a gradient. The threshold is a twentieth of the ratio of the others."""
    model = Linear()
    batches = [(torch.tensor([[0.0, 0.02], [0.0, 0.02], [0.0, 0.0], [0.0, 0.0]]), None)]
    suggestion = quiet(model, batches, torch.optim.Adam(model.parameters(), lr=1e-6), loss=output_as_loss)
    assert suggestion.clip == pytest.approx(0.001, rel=1e-3) and suggestion.ladder[0.01] == 0.5


# ---- the originals do not change


def bits(value):
    """Turn a nested state into values that == compares."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def picture(model, optimizer, loader) -> dict:
    """Collect everything about the originals that a suggestion must not change."""
    hooks = [v for k, v in vars(optimizer).items() if k.endswith("_hooks")]
    return {
        "weights": bits(model.state_dict()),
        "grads": [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "module hooks": [list(m._forward_hooks) + list(m._forward_pre_hooks) for m in model.modules()],
        "optimizer": bits(optimizer.state_dict()),
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
        "hooks": [list(h) for h in hooks],
        "attributes": sorted(vars(optimizer)),
        "random": (bits(torch.get_rng_state()), random.getstate(), bits(list(np.random.get_state()[1]))),
        "loader": bits(loader.generator.get_state()),
        "grad enabled": torch.is_grad_enabled(),
    }


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", BUILD)
def test_the_originals_do_not_change_by_a_bit(name):
    """The suggestion comes in the middle of a training with AGC and a schedule, and the training continues after it."""
    x, y = (torch.cat(part) for part in zip(*digits(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True, generator=torch.Generator())
    model = perceptron()
    optimizer = BUILD[name](param_groups(model, clip=0.05))
    schedule = warmup_cosine(optimizer, 3, 50)
    agc = AGC(optimizer)
    for batch in digits(5):
        step(model, optimizer, *batch)
        schedule.step()
    model[1].eval()
    before, stats = picture(model, optimizer, loader), agc.stats
    twin = copy.deepcopy(model)
    with torch.no_grad():
        suggestion = quiet(model, loader, optimizer, steps=16)
    assert picture(model, optimizer, loader) == before
    assert agc.steps == 5 and agc.stats is stats
    assert 0 < suggestion.low < suggestion.clip < suggestion.high and suggestion.steps <= 32
    step(model, optimizer, *digits(1)[0])
    assert agc.steps == 6 and any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_random_draws_of_the_loader_are_seeded_and_every_state_is_restored():
    class Noisy:
        def __iter__(self):
            for x, y in digits():
                yield x * random.random() + np.random.rand() + torch.rand(1), y

    model = nn.Linear(6, 3)
    optimizer, loader = BUILD["sgd"](model.parameters()), Noisy()
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), bits(list(np.random.get_state()[1])), bits(torch.get_rng_state())
    first = quiet(model, loader, optimizer)
    assert (random.getstate(), bits(list(np.random.get_state()[1])), bits(torch.get_rng_state())) == before
    random.random(), np.random.rand(), torch.rand(1)
    assert quiet(model, loader, optimizer) == first


def test_the_copy_trains_except_for_modules_in_evaluation_mode():
    model, seen = perceptron(), set()
    for i, module in enumerate(model):
        module.register_forward_pre_hook(lambda m, args, i=i: seen.add((i, m.training)))
    model[1].eval()
    quiet(model, digits(), BUILD["sgd"](model.parameters()), steps=8)
    assert seen == {(i, i != 1) for i in range(5)}
    seen.clear()
    quiet(model.eval(), digits(), BUILD["sgd"](model.parameters()), steps=8)
    assert seen == {(i, True) for i in range(5)} and not model.training


def test_an_existing_agc_does_not_change_the_suggestion():
    model = perceptron()
    plain = quiet(model, digits(), BUILD["sgd"](model.parameters()))
    optimizer = BUILD["sgd"](model.parameters())
    AGC(optimizer, clip=1e-4)
    assert quiet(model, digits(), optimizer) == plain


def test_exempt_groups_and_frozen_parameters_are_not_counted():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.frozen = Linear(), Linear(), Linear().requires_grad_(False)

        def forward(self, x):
            return self.a(x) + self.b(100 * x) + self.frozen(100 * x)

    model, batches = Two(), gradients(0.02, 0.0, {})
    groups = [
        {"params": model.a.parameters()},
        {"params": [*model.b.parameters(), *model.frozen.parameters()], "clip": None},
    ]
    suggestion = quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=output_as_loss)
    assert suggestion.ladder[0.01] == 1.0 and suggestion.ladder[0.04] == 0.0
    del groups[1]["clip"]
    assert quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=output_as_loss).ladder[0.04] == 0.5


def test_clip_eps_of_a_group_wins_over_the_argument():
    model, batches = Linear(), gradients(0.02, 0.0, {})
    groups = [{"params": list(model.parameters()), "clip_eps": 10.0}]
    assert quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=output_as_loss).clip == pytest.approx(0.002)
    adam = torch.optim.Adam(model.parameters(), lr=1e-6)
    assert quiet(model, batches, adam, loss=output_as_loss, eps=4.0).clip == pytest.approx(0.005)


# ---- use


@pytest.mark.parametrize("name", BUILD)
def test_equal_calls_give_equal_answers(name):
    x, y = (torch.cat(part) for part in zip(*digits(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    model = perceptron()
    optimizer = BUILD[name](model.parameters())
    first = quiet(model, loader, optimizer)
    torch.rand(3)
    assert quiet(model, loader, optimizer) == first
    assert quiet(model, loader, optimizer, seed=1).ladder != first.ladder


def test_the_peak_rate_is_read_from_a_schedule_or_given():
    """Warm-up starts at 0, and OneCycleLR starts at a 25th of the peak. The threshold is 0.16 * (1 - 0.9) / rate."""
    model, batches = Linear(), gradients(0.02, 50.0, {60: 4})

    def sgd(lr):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    warm, cycle = sgd(0.016), sgd(0.1)
    warmup_cosine(warm, 10, 100)
    torch.optim.lr_scheduler.OneCycleLR(cycle, max_lr=0.016, total_steps=100, cycle_momentum=False)
    assert warm.param_groups[0]["lr"] == 0.0
    for optimizer, lr in ((warm, None), (cycle, None), (sgd(0.0), 0.016), (sgd(3.0), 0.016)):
        assert quiet(model, batches, optimizer, loss=output_as_loss, lr=lr).clip == 1.0


def test_attributes_of_a_users_optimizer_are_copied():
    class CountingSGD(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr)
            self.seen, self.all = {"steps": 0}, [p for g in self.param_groups for p in g["params"]]

        def step(self, closure=None):
            self.seen["steps"] += 1
            assert all(any(p is q for g in self.param_groups for q in g["params"]) for p in self.all)
            return super().step()

    model = perceptron()
    optimizer = CountingSGD(model.parameters(), 0.1)
    assert quiet(model, digits(), optimizer) == quiet(model, digits(), torch.optim.SGD(model.parameters(), 0.1))
    assert optimizer.seen == {"steps": 0}


def test_a_loss_with_parameters_is_copied():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, out, y):
            return nn.functional.cross_entropy(self.scale * out, y)

    model, loss = perceptron(), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1)
    quiet(model, digits(), optimizer, loss=loss)
    assert loss.scale.item() == 1.0 and loss.scale.grad is None


def test_the_printed_suggestion_shows_threshold_range_and_shares():
    model = Linear()
    suggestion = quiet(
        model, gradients(0.02, 50.0, {60: 4}), torch.optim.SGD(model.parameters(), lr=0.16), loss=output_as_loss
    )
    first, *_, ladder, steps = str(suggestion).splitlines()
    assert all(word in first for word in ("clip=1,", "0.25 to 4", "high"))
    assert "0.01: 100%" in ladder and "0.02: 3%" in ladder and "60 steps" in steps


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, r"`steps`.*\b8\b.*\b0\b"),
        ({"lr": -1.0}, r"`lr`.*-1\.0"),
        ({"loader": []}, r"`loader`.*\b0\b"),
        ({"loader": iter(digits(3))}, r"`loader`.*\b3\b.*DataLoader"),
        ({"loader": [torch.zeros(2, 6)]}, r"`loader`.*\(x, y\).*Tensor"),
        ({"loader": [(torch.full((2, 6), math.nan), torch.zeros(2).long())]}, r"first loss.*\bnan\b"),
        ({"loss": lambda out, y: 0 * out.sum()}, r"first loss.*\b0\b"),
        ({"loss": lambda out, y: torch.ones((), requires_grad=True)}, "`loss`.*no gradient"),
    ],
)
def test_invalid_arguments_are_refused(more, words):
    model = perceptron()
    arguments = {"loader": digits(), "optimizer": BUILD["sgd"](model.parameters()), **more}
    with pytest.raises(WorkbenchError, match=words):
        quiet(model, **arguments)


def test_an_optimizer_without_anything_to_clip_is_refused():
    model, other = perceptron(), perceptron()
    exempt = [{"params": list(model.parameters()), "clip": None}]
    for optimizer in (BUILD["sgd"](exempt), BUILD["sgd"](other.parameters())):
        with pytest.raises(WorkbenchError, match=r"`optimizer`.*`model`.*clip=None"):
            quiet(model, digits(), optimizer)
    with pytest.raises(WorkbenchError, match=r"learning rate of `optimizer`.*\b0\b.*`lr`"):
        quiet(model, digits(), torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(WorkbenchError, match=r"`optimizer`.*AGC"):
        quiet(model, digits(), AGC(BUILD["sgd"](model.parameters())))


# ---- the program benchmarks/suggest_clip.py


def test_the_programs_comparison_equals_a_calculation_by_hand():
    search = [(0.01, 0.7), (0.01, 0.9), (0.02, 0.8), (0.02, 0.9), (math.inf, 0.1), (math.inf, 0.1)]
    rows = [{"role": "search", "clip": c, "val_acc": a, "steps": 100} for c, a in search]
    rows += [{"role": "suggested", "clip": 0.015, "val_acc": a, "steps": 100} for a in (0.7, 0.8)]
    rows += [{"role": "suggestion", "clip": 0.015, "steps": 30}]
    scores = program.compare(pd.DataFrame(rows))
    assert (scores["best clip"], scores["clip"], scores["cost"]) == (0.02, 0.015, 0.05)
    assert scores["best acc"] == pytest.approx(0.85) and scores["acc"] == pytest.approx(0.75)
    assert scores["seed sd"] == pytest.approx(0.1 / 2**0.5) and scores["pooled sd"] == pytest.approx((0.025 / 2) ** 0.5)
    assert scores["within"] == "pooled" and scores["as good"] == 2


def test_two_steps_of_lion_equal_a_calculation_by_hand():
    """The first step is the sign of the gradient, since m = 0. Then m is 0.01 of the gradient.

    The second step is the sign of 0.9 m + 0.1 g.
    """
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    lion = Lion([w], lr=0.1, weight_decay=0.5)
    w.grad = torch.tensor([2.0, -3.0])
    lion.step()
    assert w.tolist() == pytest.approx([0.85, 1.05])
    w.grad = torch.tensor([-0.1, 0.5])  # 0.9 * 0.02 - 0.01 > 0;  -0.9 * 0.03 + 0.05 > 0
    lion.step()
    assert w.tolist() == pytest.approx([0.95 * 0.85 - 0.1, 0.95 * 1.05 - 0.1])


@pytest.mark.slow
def test_a_network_that_fails_without_clipping_learns_with_the_suggestion():
    problem = program.Problem("nf_resnet", "sgd", "mnist5k", 1.6)
    model, optimizer, batches = program.start(problem, 7)
    suggestion = quiet(model, batches, optimizer)
    # whether it diverges or only learns nothing is chaotic, and differs between kinds of processors
    assert suggestion.confidence == "medium"
    assert "learnt nothing" in suggestion.why or "diverged at step" in suggestion.why
    assert (
        program.train(problem, math.inf, 7)["val_acc"]
        < 0.2
        < 0.7
        < program.train(problem, suggestion.clip, 7)["val_acc"]
    )
