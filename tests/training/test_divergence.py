"""Divergence and its cause. Evidence: planted values that are not finite, a ratio against numpy, and rare reads.

The values are planted in a known place at a known step and are found there. A device that is read every ten steps
reports the same cause and leaves the same weights as one that is read every step.
"""

import functools
import json
import math

import numpy as np
import pytest
import torch
from support.observers import BeforeUpdate
from torch import nn

from workbench.training import TrainConfig, TrainResult, assembly, setup, train
from workbench.training.cause import gradient_norms, largest_ratios
from workbench.training.checkpoint import Checkpoints
from workbench.training.watch import LossWatch

QUICK = TrainConfig(
    model="nf_resnet_tiny",
    model_args={"skip_gain": 1.0},
    batch_size=16,
    base_lr=0.8,
    steps=14,
    train_size=200,
    eval_every=3,
    progress=False,
    device="cpu",
)
WILD = QUICK.replace(clip=None, base_lr=600.0, warmup=0.2)


@pytest.fixture
def planted(monkeypatch):
    """Passes every new network to `plant`, and keeps the last."""
    kept, original = {}, setup.build_network

    def with_plant(plant):
        def make(*args, **kwargs):
            kept["model"] = original(*args, **kwargs)
            plant(kept["model"])
            return kept["model"]

        monkeypatch.setattr(setup, "build_network", make)
        return kept

    return with_plant


def at_call(n, bad):
    """A hook that multiplies only the n-th tensor that it sees with `bad`."""
    calls = []
    return lambda x: calls.append(1) or (x * bad if len(calls) == n else x)


def sound(result):
    """Whether all numbers of a result are finite, and it survives strict JSON."""
    numbers = [*result.metrics.values(), *(value for row in result.history for value in row.values())]
    strict = json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(name))
    return all(map(math.isfinite, numbers)) and TrainResult.from_json(json.dumps(strict)) == result


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_ends_the_training_before_its_update(planted, bad):
    name = "blocks.1.conv1.weight"
    kept = planted(lambda model: model.get_parameter(name).register_hook(at_call(5, bad)))
    result = train(QUICK)
    assert result.outcome == "diverged" and result.cause == f"gradient norm of {name} not finite at step 5"
    assert (result.metrics["failed_at_step"], result.metrics["failed"]) == (5, 1)
    assert [row["step"] for row in result.history] == [3] and sound(result)
    assert all(p.isfinite().all() for p in kept["model"].parameters())  # so there was no update


def test_a_bad_value_in_the_backward_pass_names_the_parameter_nearest_to_the_loss(planted):
    def plant(model):
        hook = at_call(4, math.nan)
        model.blocks[1].register_forward_hook(lambda m, i, out: out.register_hook(hook) and None)

    kept = planted(plant)
    cause = train(QUICK.replace(eval_every=20)).cause
    names = [name for name, _ in kept["model"].named_parameters()]
    assert names.index("blocks.1.skip_gain") < names.index("blocks.1.conv2.weight")  # but it is nearer to the loss
    assert cause.startswith("gradient norm of blocks.1.skip_gain not finite at step 4; of ")  # not blocks.2, nor linear


def test_a_bad_value_in_the_forward_pass_names_the_first_layer(planted):
    def plant(model):
        seen = []
        conv = model.blocks[1].conv0
        conv.register_forward_hook(
            lambda m, i, out: seen.append(m.training) or (out * math.inf if sum(seen) > 6 and m.training else out)
        )

    planted(plant)
    result = train(QUICK)
    assert result.cause == "training loss nan at step 7: not finite first in blocks.1.conv0.weight"
    assert [row["step"] for row in result.history] == [3, 6] and sound(result)


def test_the_parameter_of_a_layer_that_is_not_finite_is_named():
    def observe(step, loss, model, optimizer):
        if step == 3:
            model.blocks[0].conv1.bias.data.fill_(math.inf)

    cause = train(QUICK.replace(eval_every=20), observers=[BeforeUpdate(observe)]).cause
    assert cause.endswith("at step 4: not finite first in blocks.0.conv1.bias")


def test_a_loss_above_its_limit_names_the_largest_ratio_of_gradient_to_weight():
    """Compared with numpy on the gradients and weights of that step."""
    ratios = {}

    def observe(step, loss, model, optimizer):
        ratios.clear()
        for name, p in model.named_parameters():
            rows = (1, -1) if p.squeeze().ndim < 2 else (len(p), -1)
            g, w = (x.detach().double().numpy().reshape(rows) for x in (p.grad, p))
            norms = np.maximum(np.sqrt((w**2).sum(1)), WILD.clip_eps)
            ratios[name] = (np.sqrt((g**2).sum(1)) / norms).max()
        ratios["loss"] = loss.item()

    result = train(WILD, observers=[BeforeUpdate(observe)])
    loss = ratios.pop("loss")
    worst = max(ratios, key=ratios.get)
    assert result.outcome == "diverged" and 20 * math.log(10) < loss < math.inf and sound(result)
    opening = f"training loss {loss:.9g} at step {result.metrics['failed_at_step']} is above 46.05; largest gradient"
    assert result.cause == f"{opening} for its weight: {worst}, ratio {ratios[worst]:.3g}"


def test_the_evaluation_finds_weights_that_are_not_finite_after_a_finite_loss():
    result = train(QUICK.replace(clip=None, base_lr=1e38, warmup=0.0, eval_every=1))
    assert result.outcome == "diverged" and "validation loss nan at step 1: not finite first in" in result.cause
    assert result.history == [] and sound(result)


def as_on_a_gpu(monkeypatch):
    """Read losses and norms only every ten steps, and at evaluations."""
    every_ten_steps = lambda limit, every: LossWatch(limit, 10)
    monkeypatch.setattr(assembly, "LossWatch", functools.wraps(LossWatch)(every_ten_steps))


@pytest.mark.parametrize("config", [QUICK, WILD, WILD.replace(base_lr=1e5, clip=100.0)], ids=["nan", "loss", "both"])
def test_rare_reads_give_the_same_cause_and_the_same_weights(config, planted, monkeypatch):
    config = config.replace(eval_every=20, ema=0.9)
    name = "blocks.2.conv2.gain"

    def plant(model):
        if config.clip == 0.01:
            model.get_parameter(name).register_hook(at_call(4, math.nan))

    kept = planted(plant)
    wanted = train(config)
    weights = kept["model"].state_dict()
    as_on_a_gpu(monkeypatch)
    result = train(config)
    assert wanted.outcome == "diverged" and wanted.metrics["failed_at_step"] < 10
    assert result.cause == wanted.cause and result.metrics["failed_at_step"] == wanted.metrics["failed_at_step"]
    assert all(torch.equal(value, weights[key]) for key, value in kept["model"].state_dict().items())


def test_a_stop_between_a_failed_step_and_its_read_gives_the_same_cause(tmp_path, monkeypatch):
    as_on_a_gpu(monkeypatch)
    config, calls = WILD.replace(eval_every=20), []
    wanted = train(config)
    failed = wanted.metrics["failed_at_step"]
    with pytest.raises(KeyboardInterrupt):
        train(config, checkpoints=Checkpoints(tmp_path), stop=lambda: calls.append(1) or len(calls) == failed + 1)
    assert [place.name for place in tmp_path.iterdir()] == [f"step-{failed + 1:08d}"]
    again = train(config, checkpoints=Checkpoints(tmp_path))
    assert again.cause == wanted.cause and again.metrics["failed_at_step"] == failed


@pytest.mark.parametrize("rare_reads", [False, True], ids=["read each step", "read at the next evaluation"])
def test_tables_end_before_the_step_that_failed(planted, monkeypatch, rare_reads):
    if rare_reads:
        as_on_a_gpu(monkeypatch)
    tables = {}
    planted(lambda model: model.linear.weight.register_hook(at_call(5, math.nan)))
    train(QUICK.replace(telemetry_every=1, signal_every=1), tables=lambda name, table: tables.update({name: table}))
    assert tables["agc"].step.max() == tables["signal"].step.max() == 4
    assert np.isfinite(tables["agc"].select_dtypes("number")).all().all()


def test_a_training_that_diverges_before_the_first_row_gives_empty_tables():
    tables = {}
    config = WILD.replace(clip=100.0, base_lr=1e5, telemetry_every=50)
    assert train(config, tables=lambda name, table: tables.update({name: table})).outcome == "diverged"
    assert tables["agc"].empty and {"step", "parameter", "clipped_share"} <= set(tables["agc"])


def test_norms_and_ratios_equal_those_by_hand():
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.6, 0.8]))
    parameters = list(model.parameters())
    model.weight.grad = torch.tensor([[6.0, 8.0], [0.0, 0.03]])
    assert gradient_norms(parameters).tolist() == pytest.approx([math.sqrt(100.0009), 0.0])
    assert largest_ratios(model, eps=0.01).tolist() == pytest.approx([3.0, 0.0])  # 10 / 5, and 0.03 / 0.01
    model.bias.grad = torch.tensor([2.0, 0.0])
    assert largest_ratios(model, eps=0.01).tolist() == pytest.approx([3.0, 2.0])  # a vector is one unit


def test_each_loss_is_read_once():
    watch, norms = LossWatch(limit=10.0, every=3), torch.ones(2)
    verdicts = [watch.diverged(step, torch.tensor(float(step)), norms, look=step == 4) for step in range(1, 5)]
    assert verdicts == [False] * 4 and watch.mean_since_last() == 2.5 and watch.failed.item() == 0
    assert not watch.diverged(5, torch.tensor(11.0), norms, look=False) and watch.failed.item() == 1
    assert watch.diverged(6, torch.tensor(1.0), norms, look=False) and (watch.step, watch.loss) == (5, 11.0)


def test_a_streamed_training_makes_the_failed_batch_again(image_folder):
    settings = {"data": str(image_folder), "image_size": 16, "stream": True, "train_size": None}
    result = train(WILD.replace(**settings, batch_size=8, workers=1))
    assert result.outcome == "diverged" and "; largest gradient for its weight: " in result.cause and sound(result)
