"""A suggested threshold. Evidence: ratios, gains and divergences that a person works out, the originals bit for bit,
equal answers to equal calls, and a training that fails without the threshold and learns with it.
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
    """Batches that a perceptron learns: the class is the largest of three sums."""
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(size, 6, generator=generator) for _ in range(n)]
    return [(x, x.view(-1, 3, 2).sum(2).argmax(1)) for x in xs]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


# ---- what a person works out


class Linear(nn.Module):
    """The loss is the sum of w * x, so the gradient is x. Every unit of w has length 1; w * x = 0 at the start, where
    only the first column of w is not 0, and of x the second."""

    def __init__(self, units: int = 4):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[1.0, 0.0]]).repeat(units, 1))

    def forward(self, x):
        return (self.w * x).sum()


def gradients(level: float, spike: float, at: dict[int, int], steps: int = 60) -> list:
    """Batches whose ratio is `level`, and `spike` in the first n units at step s, for {s: n}."""
    made = []
    for step in range(1, steps + 1):
        x = torch.tensor([[0.0, level]]).repeat(4, 1)
        x[: at.get(step, 0), 1] = spike
        made.append((x, None))
    return made


def its_own(value, _):
    return value


def test_sgd_gets_the_threshold_at_which_a_unit_moves_by_its_share():
    """Rate 0.016 and momentum 0.9 move by 0.16 of a gradient; 0.16 of the length is a threshold of 1, which lies
    between the level, 0.02, and the spikes, 50."""
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=0.016, momentum=0.9)
    suggestion = quiet(model, gradients(0.02, 50.0, {60: 4}), sgd, loss=its_own)
    assert (suggestion.clip, suggestion.low, suggestion.high, suggestion.confidence) == (1.0, 0.25, 4.0, "high")
    assert "16% of its length" in suggestion.why and suggestion.steps == 60 and suggestion.diverged_at is None


def test_at_a_small_rate_only_the_rarest_spikes_are_taken():
    """One unit in one of 30 steps of 4 units is less than a hundredth."""
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-4)
    suggestion = quiet(model, gradients(0.015, 50.0, {45: 1}), sgd, loss=its_own)
    assert suggestion.clip == pytest.approx(0.015, rel=1e-3)
    assert suggestion.ladder[0.01] == 1.0 and suggestion.ladder[0.02] == pytest.approx(1 / 120)
    assert "less than 1.5e-06 of their length a step: no threshold matters much" in suggestion.why


@pytest.mark.parametrize("build", [torch.optim.AdamW, Lion])
def test_where_the_step_does_not_grow_the_threshold_lies_at_the_level_and_below_the_spikes(build):
    model = Linear()
    suggestion = quiet(
        model, gradients(0.02, 5.0, {40: 4, 50: 4}), build(model.parameters(), lr=1e-6), loss=its_own, seed=3
    )
    assert suggestion.clip == pytest.approx(0.02, rel=1e-3) and suggestion.clip < suggestion.high < 5.0
    assert suggestion.confidence == "medium" and "does not grow with the gradient" in suggestion.why
    assert suggestion.ladder[0.32] == pytest.approx(8 / 120)


def test_gains_by_hand():
    """lr (1 - dampening) / (1 - momentum); Nesterov's is the same in the end."""

    def of(build, **more):
        w = nn.Parameter(torch.ones(3))
        return _gain(build([w], **more), [more["lr"]])

    sgd = torch.optim.SGD
    for lr in (1e-7, 1e-3, 0.1, 1e3):
        assert of(sgd, lr=lr) == pytest.approx(lr, rel=2e-3)
    assert of(sgd, lr=0.1, momentum=0.9, weight_decay=0.5) == pytest.approx(1.0, rel=1e-4)
    assert of(sgd, lr=0.1, momentum=0.9, nesterov=True) == pytest.approx(1.0, rel=1e-4)
    assert of(sgd, lr=0.1, momentum=0.9, dampening=0.5) == pytest.approx(0.5, rel=1e-4)
    for build in (torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, Lion):
        assert of(build, lr=0.1) is None


def test_the_rate_of_an_exempt_group_does_not_count():
    a, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    sgd = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 5.0, "clip": None}], lr=0.1)
    assert _gain(sgd, [0.1, 5.0]) == pytest.approx(0.1, rel=1e-4)


class Quadratic(nn.Module):
    """The loss is 5 |w|^2, so every ratio is 10, whatever w."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))

    def forward(self, x):
        return 5 * self.w.square().sum()


def test_a_divergence_by_hand_and_a_threshold_that_stops_it():
    """At half the rate w becomes -4 w and the loss 16 times as large, at the whole rate another 81 times: more than 20.
    Clipped at 0.16 and rate 1, w loses 16 % a step."""
    model, batches = Quadratic(), [(torch.zeros(1), None)]
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    suggestion = quiet(model, batches, sgd, loss=its_own, steps=8)
    assert suggestion.diverged_at == 3 and suggestion.steps == 3 + 8
    assert (suggestion.clip, suggestion.confidence) == (0.16, "medium")
    assert suggestion.ladder[0.32] == 1.0
    AGC(sgd, suggestion.clip)
    for _ in range(10):
        sgd.zero_grad()
        model(None).backward()
        sgd.step()
    assert model.w[0].norm().item() == pytest.approx(5 * 0.84**10, rel=1e-4)


def test_a_threshold_that_diverges_is_quartered_and_where_none_helps_the_rate_is_named():
    model, batches = Quadratic(), [(torch.zeros(1), None)]
    adam = torch.optim.Adam(model.parameters(), lr=1e3)
    suggestion = quiet(model, batches, adam, loss=its_own, steps=16)
    assert suggestion.confidence == "low" and "lower the learning rate" in suggestion.why
    assert suggestion.steps <= 32 and suggestion.diverged_at is not None
    assert suggestion.clip < 10 / 4**2  # every ratio is 10
    assert suggestion.clip / suggestion.low == pytest.approx(4, rel=0.05)
    assert suggestion.high / suggestion.clip == pytest.approx(4, rel=0.05)


def test_a_run_that_learns_nothing_is_run_again_and_not_trusted():
    """The loss falls by less than 2 % of 100 at this rate, with clipping and without."""
    model = Linear()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    suggestion = quiet(model, gradients(0.02, 0.0, {}), sgd, loss=lambda out, y: 100 + out)
    assert (suggestion.confidence, suggestion.steps, suggestion.clip, suggestion.diverged_at) == (
        "low",
        120,
        160.0,
        None,
    )
    assert "learnt nothing" in suggestion.why and "give it more steps" in suggestion.why


def test_dead_units_do_not_make_the_threshold_zero():
    """Two of four units never have a gradient: a twentieth of what the others have."""
    model = Linear()
    batches = [(torch.tensor([[0.0, 0.02], [0.0, 0.02], [0.0, 0.0], [0.0, 0.0]]), None)]
    suggestion = quiet(model, batches, torch.optim.Adam(model.parameters(), lr=1e-6), loss=its_own)
    assert suggestion.clip == pytest.approx(0.001, rel=1e-3) and suggestion.ladder[0.01] == 0.5


# ---- the originals


def bits(value):
    """What can be compared with ==, of nested states."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return [bits(v) for v in value] if isinstance(value, list | tuple) else value


def picture(model, optimizer, loader) -> dict:
    hooks = [v for k, v in vars(optimizer).items() if k.endswith("_hooks")]
    return {
        "weights": bits(model.state_dict()),
        "grads": [None if p.grad is None else (id(p.grad), bits(p.grad)) for p in model.parameters()],
        "asked": [p.requires_grad for p in model.parameters()],
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
def test_the_originals_are_left_bit_for_bit(name):
    """In the middle of a training, with an AGC and a schedule; and the training goes on as if nothing had been."""
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


def test_draws_of_the_loader_are_seeded_and_taken_back():
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


def test_the_copy_trains_but_for_what_was_put_into_evaluation_mode():
    model, seen = perceptron(), set()
    for i, module in enumerate(model):
        module.register_forward_pre_hook(lambda m, args, i=i: seen.add((i, m.training)))
    model[1].eval()
    quiet(model, digits(), BUILD["sgd"](model.parameters()), steps=8)
    assert seen == {(i, i != 1) for i in range(5)}
    seen.clear()
    quiet(model.eval(), digits(), BUILD["sgd"](model.parameters()), steps=8)
    assert seen == {(i, True) for i in range(5)} and not model.training


def test_an_agc_of_its_own_changes_nothing():
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
    suggestion = quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=its_own)
    assert suggestion.ladder[0.01] == 1.0 and suggestion.ladder[0.04] == 0.0
    del groups[1]["clip"]
    assert quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=its_own).ladder[0.04] == 0.5


def test_the_floor_of_the_weights_is_the_groups_own():
    model, batches = Linear(), gradients(0.02, 0.0, {})
    groups = [{"params": list(model.parameters()), "clip_eps": 10.0}]
    assert quiet(model, batches, torch.optim.Adam(groups, lr=1e-6), loss=its_own).clip == pytest.approx(0.002)
    adam = torch.optim.Adam(model.parameters(), lr=1e-6)
    assert quiet(model, batches, adam, loss=its_own, eps=4.0).clip == pytest.approx(0.005)


# ---- what a user meets


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


def test_the_peak_rate_is_found_behind_a_schedule_and_can_be_said():
    """Warm-up starts at 0, OneCycleLR at a 25th; 0.16 * (1 - 0.9) / rate."""
    model, batches = Linear(), gradients(0.02, 50.0, {60: 4})

    def sgd(lr):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    warm, cycle = sgd(0.016), sgd(0.1)
    warmup_cosine(warm, 10, 100)
    torch.optim.lr_scheduler.OneCycleLR(cycle, max_lr=0.016, total_steps=100, cycle_momentum=False)
    assert warm.param_groups[0]["lr"] == 0.0
    for optimizer, lr in ((warm, None), (cycle, None), (sgd(0.0), 0.016), (sgd(3.0), 0.016)):
        assert quiet(model, batches, optimizer, loss=its_own, lr=lr).clip == 1.0


def test_a_users_own_attributes_go_along():
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


def test_a_loss_with_parameters_is_copied_too():
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


def test_it_reads_well():
    model = Linear()
    suggestion = quiet(
        model, gradients(0.02, 50.0, {60: 4}), torch.optim.SGD(model.parameters(), lr=0.16), loss=its_own
    )
    first, *_, ladder, steps = str(suggestion).splitlines()
    assert first == "clip=1, search 0.25 to 4; confidence high"
    assert "0.01: 100%" in ladder and "0.02: 3%" in ladder and steps.strip() == "60 steps of a copy"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"steps": 0}, r"`steps` \(=0\) must be at least 8"),
        ({"lr": -1.0}, r"`lr` \(=-1.0\) must be above 0"),
        ({"loader": []}, "`loader` is empty"),
        ({"loader": iter(digits(3))}, "ended after 3 batches and cannot start again: give a list or a DataLoader"),
        ({"loader": [torch.zeros(2, 6)]}, r"must give pairs \(x, y\), not Tensor"),
        ({"loader": [(torch.full((2, 6), math.nan), torch.zeros(2).long())]}, r"the first loss \(=nan\)"),
        ({"loss": lambda out, y: 0 * out.sum()}, "not all 0"),
        ({"loss": lambda out, y: torch.ones((), requires_grad=True)}, "gave no gradient to any parameter"),
    ],
)
def test_mistakes_are_refused(more, message):
    model = perceptron()
    arguments = {"loader": digits(), "optimizer": BUILD["sgd"](model.parameters()), **more}
    with pytest.raises(WorkbenchError, match=message):
        quiet(model, **arguments)


def test_nothing_to_clip_is_refused():
    model, other = perceptron(), perceptron()
    exempt = [{"params": list(model.parameters()), "clip": None}]
    for optimizer in (BUILD["sgd"](exempt), BUILD["sgd"](other.parameters())):
        with pytest.raises(WorkbenchError, match="there is nothing to clip"):
            quiet(model, digits(), optimizer)
    with pytest.raises(WorkbenchError, match="the learning rate of `optimizer` is 0: give the peak rate"):
        quiet(model, digits(), torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(WorkbenchError, match="built on `model`, not AGC"):
        quiet(model, digits(), AGC(BUILD["sgd"](model.parameters())))


# ---- the program beside it


def test_what_the_program_compares_by_hand():
    search = [(0.01, 0.7), (0.01, 0.9), (0.02, 0.8), (0.02, 0.9), (math.inf, 0.1), (math.inf, 0.1)]
    rows = [{"role": "search", "clip": c, "val_acc": a, "steps": 100} for c, a in search]
    rows += [{"role": "suggested", "clip": 0.015, "val_acc": a, "steps": 100} for a in (0.7, 0.8)]
    rows += [{"role": "suggestion", "clip": 0.015, "steps": 30}]
    scores = program.compare(pd.DataFrame(rows))
    assert (scores["best clip"], scores["clip"], scores["cost"]) == (0.02, 0.015, 0.05)
    assert scores["best acc"] == pytest.approx(0.85) and scores["acc"] == pytest.approx(0.75)
    assert scores["seed sd"] == pytest.approx(0.1 / 2**0.5) and scores["pooled sd"] == pytest.approx((0.025 / 2) ** 0.5)
    assert scores["within"] == "pooled" and scores["as good"] == 2


def test_lion_by_hand():
    """From m = 0 the first step is the sign of the gradient; m is then 0.01 of it, and -0.001 of one against it wins
    against 0.9 * 0.01 only when it is larger."""
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    lion = Lion([w], lr=0.1, weight_decay=0.5)
    w.grad = torch.tensor([2.0, -3.0])
    lion.step()
    assert w.tolist() == pytest.approx([0.85, 1.05])
    w.grad = torch.tensor([-0.1, 0.5])  # 0.9 * 0.02 - 0.01 > 0;  -0.9 * 0.03 + 0.05 > 0
    lion.step()
    assert w.tolist() == pytest.approx([0.95 * 0.85 - 0.1, 0.95 * 1.05 - 0.1])


@pytest.mark.slow
def test_a_network_that_fails_without_learns_with_the_suggestion():
    problem = program.Problem("nf_resnet", "sgd", "mnist5k", 1.6)
    model, optimizer, batches = program.start(problem, 7)
    suggestion = quiet(model, batches, optimizer)
    # whether it diverges or only learns nothing is chaos, and differs from one kind of processor to the next
    assert suggestion.confidence == "medium" and suggestion.why.startswith("the run without clipping ")
    assert "learnt nothing" in suggestion.why or "diverged at step" in suggestion.why
    assert (
        program.train(problem, math.inf, 7)["val_acc"]
        < 0.2
        < 0.7
        < program.train(problem, suggestion.clip, 7)["val_acc"]
    )
