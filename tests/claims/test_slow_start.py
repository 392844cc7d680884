"""The slow start of zero skip gains. Evidence: the clipped parameters of each arm, and the measured bound of 1e-5.

The verdict flips with the table.
"""

import pandas as pd
import pytest
import torch

from workbench.claims import slow_start
from workbench.lab.statistics.effects import compare_arms
from workbench.models import create_model
from workbench.optim import AGC, param_groups
from workbench.training import TrainConfig
from workbench.training.setup import groups_of


def confirmed(gain, spread=0.002):
    """Eight seeds. Without clipping of skip gains, accuracy is higher by `gain`, plus or minus `spread` in turns."""
    return pd.DataFrame(
        {"arm": arm, "lr": 1.6, "seed": seed, "failed": 0, "test_acc": 0.4 + more + spread * (-1) ** seed * (more != 0)}
        for arm, more in ((slow_start.PAPER, 0.0), (slow_start.GAINS, gain), (slow_start.ONE, 0.1))
        for seed in range(100, 108)
    )


def screened():
    return pd.DataFrame({"arm": slow_start.PAPER, "lr": lr, "val_acc": 0.5 - abs(lr - 1.6)} for lr in (0.8, 1.6, 3.2))


def test_each_arm_clips_what_its_name_says():
    unclipped = {}
    for arm, fields in slow_start.arms(0.01, [0.1]).items():
        config = TrainConfig(steps=1, **fields)
        model = create_model(config.model, **config.model_args)
        unclipped[arm] = {n for g in groups_of(model, config) if g["clip"] is None for n in g["names"]}
    head = {"linear.weight"}
    gains = {f"blocks.{n}.skip_gain" for n in range(3)}
    assert unclipped[slow_start.PAPER] == unclipped["eps 0.1"] == unclipped[slow_start.ONE] == head
    assert unclipped[slow_start.GAINS] == head | gains
    assert gains < unclipped[slow_start.VECTORS] and not any(
        "weight" in n for n in unclipped[slow_start.VECTORS] - head
    )
    assert unclipped[slow_start.NONE] > unclipped[slow_start.VECTORS] and "stem.weight" in unclipped[slow_start.NONE]


def test_a_clipped_skip_gain_at_zero_gets_a_gradient_of_at_most_1e_5():
    torch.manual_seed(0)
    model = create_model("nf_resnet_tiny", skip_gain=0.0)
    optimizer = torch.optim.SGD(param_groups(model, clip=0.01), lr=1.0)
    AGC(optimizer)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert abs(model.blocks[0].skip_gain.grad.item()) > 1e-3
    optimizer.step()
    assert model.blocks[0].skip_gain.abs().item() == pytest.approx(1e-5, rel=1e-3)  # clip x eps x rate


def test_the_verdict_flips_with_the_table():
    gains, costs, unclear = (
        slow_start.judge(screened(), confirmed(*effect)) for effect in ((0.03,), (-0.03,), (0.001, 0.02))
    )
    assert gains.holds is True and gains.effect.p < 0.01
    assert gains.effect.value.mean == pytest.approx(0.03)
    assert costs.holds is False and unclear.holds is None
    assert gains.table.set_index("arm").points[slow_start.ONE] == pytest.approx(10)
    assert compare_arms(confirmed(0.03), slow_start.PAPER).set_index("arm").accuracy[slow_start.ONE] == pytest.approx(
        0.5
    )
