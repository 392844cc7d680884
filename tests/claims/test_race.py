"""The race. Evidence: paces and shares of the peak by hand.

The verdict needs accuracy and seconds, and flips with each. The fast net keeps its variance without BatchNorm.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.claims import race
from workbench.networks import build_network
from workbench.training import TrainConfig
from workbench.training.step_time import operations_an_image

FAST = "studies/fast_resnet.py:build"


def tables(ahead=0.0, ratio=1.0, failed=()):
    """Eight seeds with a little noise. NF+AGC is `ahead` in accuracy and takes `ratio` times the seconds."""
    rng, confirmed, paces = np.random.default_rng(0), [], []
    for arm, clip, more, longer in (("BN", np.nan, 0.0, 1.0), ("NF+AGC", 0.04, ahead, ratio)):
        noise = rng.normal(0, 1, 8)
        noise -= noise.mean()
        for seed, luck in enumerate(noise):
            diverged = arm != "BN" and seed in failed
            outcome = "diverged" if diverged else "complete"
            confirmed.append(
                {"arm": arm, "clip": clip, "seed": seed, "lr": 0.4, "steps": 100, "failed": int(diverged),
                 "outcome": outcome, "val_acc": 0.9, "test_acc": 0.1 if diverged else 0.94 + more + 0.001 * luck}
            )  # fmt: skip
            seconds = np.nan if diverged else 10 * longer * 1.01**luck
            paces.append(
                {"arm": arm, "seed": seed, "device": "GPU", "seconds": seconds, "images_per_second": 1000 / seconds,
                 "peak_share": 0.3}
            )  # fmt: skip
    return pd.DataFrame({"arm": ["BN"], "clip": [np.nan], "lr": [0.4], "val_acc": [0.9], "failed": [0]}), *map(
        pd.DataFrame, (confirmed, paces)
    )


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"ahead": 0.02}, True),  # more accurate is not outside the margin
        ({"ratio": 1.2}, True),
        ({"ratio": 1.4}, False),
        ({"ahead": -0.01}, False),
        ({"ahead": -0.003}, None),  # at the margin
        ({"ratio": 1.3}, None),
        ({"ahead": 0.02, "ratio": 2.0}, False),  # more accuracy does not compensate for time
    ],
)
def test_accuracy_and_seconds_must_both_be_shown(changes, holds):
    verdict = race.judge(*tables(**changes))
    assert verdict.holds is holds
    assert (verdict.effect.p < 0.05) == (holds is True)


def test_the_table_has_accuracy_and_costs_of_each_arm():
    verdict = race.judge(*tables(ahead=0.001, ratio=1.2))
    assert verdict.effect.value.mean == pytest.approx(0.001)
    rows = verdict.table.set_index("arm")
    bn, clipped = rows.loc["BN"], rows.loc["NF+AGC"]
    assert clipped.times_bn == pytest.approx(1.2) and 1.1 < clipped.low < 1.2 < clipped.high and np.isnan(bn.times_bn)
    assert bn.accuracy == pytest.approx(0.94) and clipped.seconds == pytest.approx(12, rel=0.01)
    assert (bn.steps, bn.device) == (100, "GPU") and bn.peak_share == pytest.approx(0.3)


def test_a_diverged_training_counts_as_guessing_and_has_no_pace():
    screened, confirmed, paces = tables(failed=(0, 1))
    verdict = race.judge(screened, confirmed, paces)
    assert verdict.holds is not True and verdict.effect.value.mean == pytest.approx(-0.84 * 2 / 8, abs=0.002)
    (left, *_) = race.figure(screened, confirmed, paces).axes
    assert _legend(left) == ["BN", "NF+AGC", "NF+AGC, failed"]
    (left, *_) = race.figure(*tables(failed=range(8))).axes
    assert _legend(left) == ["BN", "NF+AGC, failed"]


def _legend(axes):
    return [label for label in axes.get_legend_handles_labels()[1] if "BN's" not in label]


class Histories:
    """A store of one history: 100 images per second after a start of five seconds."""

    def read_table(self, run, name):
        steps = np.array([10, 20, 30])
        return pd.DataFrame({"step": steps, "samples_seen": 10 * steps, "seconds": 5 + steps / 10})


def test_the_pace_excludes_the_start_and_its_share_is_of_the_devices_peak():
    rows = [
        {"arm": "BN", "seed": s, "device": device, "steps": 30, "batch_size": 10, "run_id": "r", "outcome": outcome}
        for s, (device, outcome) in enumerate(
            [("NVIDIA H100 80GB HBM3", "complete"), ("cpu", "complete"), ("cpu", "diverged")]
        )
    ]
    paces = race.paces(pd.DataFrame(rows), {"BN": 989e9}, Histories(), "bfloat16")
    assert paces.images_per_second[0] == pytest.approx(100) and paces.seconds[0] == pytest.approx(3)
    assert paces.peak_share[0] == pytest.approx(0.1) and np.isnan(paces.peak_share[1]) and np.isnan(paces.seconds[2])
    assert race.paces(pd.DataFrame(rows), {"BN": 1.0}, Histories(), "float32").peak_share.isna().all()
    assert race.peak_of("NVIDIA H100 PCIe") < race.peak_of("NVIDIA H200")


def test_operations_are_six_per_multiply_accumulate_except_in_the_stem():
    """Forward needs two operations per multiply-accumulate, backward four. The images need no gradient."""
    config = TrainConfig(model=FAST, model_args={"arguments": {"width": 4}}, steps=1)
    n, w = 28, 4
    stem = n * n * 9 * w
    rest = n * n * 9 * w * 2 * w + 2 * (n // 2) ** 2 * 9 * (2 * w) ** 2 + (n // 2) ** 2 * 9 * 2 * w * 4 * w
    rest += (n // 4) ** 2 * 9 * 4 * w * 8 * w + 2 * (n // 8) ** 2 * 9 * (8 * w) ** 2 + 8 * w * 10
    assert operations_an_image(config) == 4 * stem + 6 * rest


def test_the_fast_net_without_batchnorm_has_its_shape_and_a_sane_variance():
    torch.manual_seed(0)
    model = build_network(f"normfree:{FAST}", 10, 3, image_size=32, skip_gain=1.0)
    assert not any("BatchNorm" in type(m).__name__ for m in model.modules())
    x = torch.randn(16, 3, 32, 32)
    assert model(x).shape == (16, 10) and 0.1 < model.block3(torch.relu(torch.randn(4, 512, 4, 4))).var() < 10
