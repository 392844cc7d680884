"""Tests of thresholds and step counts in saved states. Evidence: counts and limits by hand, both values in warnings."""

import warnings

import pytest
import torch
from torch import nn

from workbench.errors import WorkbenchError
from workbench.optim import AGC, param_groups


def halving(step):
    return 0.5**step


def other(step):
    return 0.25


def weight(settings=None, **more):
    """Make one row (3, 4), whose length is 5, and an optimizer that moves nothing."""
    p = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    return p, torch.optim.SGD([{"params": [p], **(settings or {})}], lr=0.0, **more)


def limit(p, optimizer):
    """Step with a huge gradient and return the threshold that was in force."""
    p.grad = torch.full_like(p, 1e6)
    optimizer.step()
    return (p.grad[0].norm() / 5).item()


def saved(settings, steps=3, **arguments):
    """Return the state of an optimizer after some steps, as a framework saves it: without that of AGC."""
    p, optimizer = weight(settings)
    AGC(optimizer, **arguments)
    for _ in range(steps):
        limit(p, optimizer)
    return optimizer.state_dict()


BY_GROUP = ({"clip": halving}, {})
BY_ARGUMENT = ({}, {"clip": halving})


@pytest.mark.parametrize(("settings", "arguments"), [BY_GROUP, BY_ARGUMENT], ids=["group", "argument"])
def test_the_optimizers_state_continues_a_schedule(settings, arguments):
    p, optimizer = weight(settings)
    agc = AGC(optimizer, **arguments)
    optimizer.load_state_dict(saved(settings, **arguments))
    assert agc.steps == 3
    assert limit(p, optimizer) == pytest.approx(0.125) and limit(p, optimizer) == pytest.approx(0.0625)
    assert {"clip_step", "clip_function"}.isdisjoint(optimizer.param_groups[0])


def test_a_state_that_was_loaded_before_agc_is_made_continues_a_schedule():
    p, optimizer = weight()
    optimizer.load_state_dict(saved(*BY_ARGUMENT[:1], **BY_ARGUMENT[1]))
    agc = AGC(optimizer, clip=halving)
    assert agc.steps == 3 and limit(p, optimizer) == pytest.approx(0.125)


def test_a_group_that_gets_its_function_again_continues_the_schedule():
    p, optimizer = weight({"clip": halving})
    optimizer.load_state_dict(saved({"clip": halving}))
    optimizer.param_groups[0]["clip"] = halving
    assert AGC(optimizer).steps == 3 and limit(p, optimizer) == pytest.approx(0.125)
    assert optimizer.state_dict()["param_groups"][0]["clip_step"] == 4


@pytest.mark.parametrize(("settings", "arguments"), [BY_GROUP, BY_ARGUMENT], ids=["group", "argument"])
def test_a_lost_function_is_refused_and_leaves_no_hook(settings, arguments):
    p, optimizer = weight(settings)
    optimizer.load_state_dict(saved(settings, **arguments))
    with pytest.raises(WorkbenchError, match="halving"):
        AGC(optimizer)
    p.grad = torch.full_like(p, 1e6)
    optimizer.step()
    assert p.grad[0, 0].item() == 1e6


@pytest.mark.parametrize("clip", [0.02, None])
def test_a_function_is_not_replaced_by_a_number(clip):
    _, optimizer = weight({"clip": clip})
    agc = AGC(optimizer)
    state = saved({"clip": halving})
    with pytest.raises(WorkbenchError, match=f"halving.*{clip}"):
        optimizer.load_state_dict(state)
    assert agc.steps == 0 and optimizer.param_groups[0]["clip"] == clip
    state["param_groups"][0]["clip"] = clip  # the way out that the error names
    optimizer.load_state_dict(state)
    assert agc.steps == 3 and optimizer.param_groups[0]["clip"] == clip


def test_a_function_lost_behind_the_back_of_agc_is_refused_at_the_next_step():
    p, optimizer = weight({"clip": halving})
    AGC(optimizer)
    optimizer.param_groups[0].update(saved({"clip": halving})["param_groups"][0], params=[p])
    del optimizer.param_groups[0]["clip"]
    with pytest.raises(WorkbenchError, match="halving"):
        limit(p, optimizer)


def test_an_optimizer_that_loads_without_hooks_continues_the_count():
    class Unhooked(torch.optim.SGD):
        def load_state_dict(self, state):
            params = [group["params"] for group in self.param_groups]
            self.param_groups = [{**g, "params": p} for g, p in zip(state["param_groups"], params, strict=True)]

    p = nn.Parameter(torch.tensor([[3.0, 4.0], [3.0, 4.0]]))
    optimizer = Unhooked([{"params": [p], "clip": halving}], lr=0.0)
    agc = AGC(optimizer)
    optimizer.load_state_dict(saved({"clip": halving}))
    optimizer.param_groups[0]["clip"] = halving
    assert limit(p, optimizer) == pytest.approx(0.125) and agc.steps == 4
    assert limit(p, optimizer) == pytest.approx(0.0625)


@pytest.mark.parametrize(
    ("ours", "loaded", "shown", "in_force"),
    [
        (({"clip": 0.02}, {}), ({"clip": 0.25}, {}), ("0.02", "0.25"), 0.25),
        (({}, {"clip": 0.02}), ({"clip": 0.25}, {}), ("0.02", "0.25"), 0.25),
        (({}, {"clip": 0.02}), ({}, {"clip": 0.25}), ("0.02", "0.25"), 0.25),
        (({"clip": None}, {}), ({"clip": 0.25}, {}), ("None", "0.25"), 0.25),
        (({"clip": halving}, {}), ({"clip": 0.25}, {}), ("halving", "0.25"), 0.25),
        (({"clip": other}, {}), ({"clip": halving}, {}), ("halving", "other"), 0.25),  # the code has the function
        (({"clip_eps": 50.0}, {"clip": 0.1}), ({"clip_eps": 100.0}, {"clip": 0.1}), ("50.0", "100.0"), 0.1 * 100 / 5),
        (({}, {"clip": 0.1, "eps": 50.0}), ({}, {"clip": 0.1, "eps": 100.0}), ("50.0", "100.0"), 0.1 * 100 / 5),
    ],
)
def test_a_loaded_value_that_differs_from_the_codes_gives_a_warning_with_both(ours, loaded, shown, in_force):
    p, optimizer = weight(ours[0])
    AGC(optimizer, **ours[1])
    with pytest.warns(UserWarning) as caught:
        optimizer.load_state_dict(saved(loaded[0], **loaded[1]))
    assert len(caught) == 1 and all(value in str(caught[0].message) for value in shown)
    assert limit(p, optimizer) == pytest.approx(in_force)


def test_equal_settings_load_without_a_warning_and_leave_the_groups_as_they_were():
    for settings, arguments in [({"clip": 0.02}, {}), ({}, {"clip": 0.02, "eps": 0.5}), ({"clip": None}, {}), BY_GROUP]:
        _, optimizer = weight(settings)
        AGC(optimizer, **arguments)
        before = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.load_state_dict(saved(settings, **arguments))
        assert {k: v for k, v in optimizer.param_groups[0].items() if k != "params"} == before


def test_an_argument_that_differs_from_a_state_loaded_before_is_refused():
    _, optimizer = weight()
    optimizer.load_state_dict(saved({}, clip=0.25))
    with pytest.raises(WorkbenchError, match=r"0\.02.*0\.25"):
        AGC(optimizer, clip=0.02)


def test_a_step_that_a_grad_scaler_skips_in_a_fused_optimizer_does_not_count():
    p, optimizer = weight({"clip": halving}, fused=True)
    agc = AGC(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    counts, limits = [], []
    for value in (1e6, torch.inf, 1e6):
        p.grad = torch.full_like(p, value)
        scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        limits.append((p.grad[0].norm() / 5).item())
        counts.append(agc.steps)
    assert counts == [1, 1, 2]
    assert limits[::2] == pytest.approx([1.0, 0.5])


def test_the_count_of_skipped_steps_is_not_read_from_the_device_at_each_step(monkeypatch):
    p, optimizer = weight({"clip": 0.02}, fused=True)
    agc = AGC(optimizer)
    for name in ("item", "tolist", "__int__", "__bool__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("AGC read a value"))
    for skipped in (0.0, 1.0, 1.0, 0.0):
        optimizer.found_inf = torch.full((), skipped)
        p.grad = torch.ones_like(p)
        optimizer.step()
    monkeypatch.undo()
    assert agc.steps == 2 and optimizer.state_dict()["param_groups"][0]["clip_step"] == 2


def test_states_of_torchs_distributed_checkpoints_continue_a_schedule():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        optimizer = torch.optim.SGD(param_groups(model, clip=halving), lr=0.1, momentum=0.9)
        return model, optimizer, AGC(optimizer)

    model, optimizer, agc = made()
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    state = get_optimizer_state_dict(model, optimizer)
    model, optimizer, agc = made()
    set_optimizer_state_dict(model, optimizer, state)
    assert agc.steps == 3 and optimizer.param_groups[0]["clip"] is halving
