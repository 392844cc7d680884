"""Tests of the learning rate. Evidence: the paper's values, hand arithmetic."""

import math

import pytest
import torch

from workbench.errors import WorkbenchError
from workbench.optim import scaled_lr, warmup_cosine


def rates(peak, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = warmup_cosine(optimizer, warmup, total)
    lr_by_step = []
    for _ in range(total):
        lr_by_step.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*lr_by_step, optimizer.param_groups[0]["lr"]]


def test_linear_scaling_gives_the_papers_rate():
    assert scaled_lr(0.1, 4096) == 1.6


def test_warmup_is_linear_from_zero_and_the_cosine_ends_at_zero():
    lr_by_step = rates(1.6, 4, 12)
    assert lr_by_step[:5] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert lr_by_step[8] == pytest.approx(0.8)  # half way down
    assert lr_by_step[12] == pytest.approx(0, abs=1e-12)


def test_a_warmup_may_end_between_two_steps():
    # 5 epochs of 1,281,167 images at batch size 4096 are 1563.9 steps. Here the warm-up has 2.5 of 10 steps.
    lr_by_step = rates(1.0, 2.5, 10)
    assert lr_by_step[2] == pytest.approx(2 / 2.5)
    assert lr_by_step[3] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5 / 7.5)))


def test_a_schedule_without_warmup_starts_at_the_peak():
    assert rates(2.0, 0, 4)[0] == 2.0


@pytest.mark.parametrize(("warmup", "total"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_lengths_are_refused(warmup, total):
    with pytest.raises(WorkbenchError, match=rf"`warmup_steps`.*`total_steps` \(={total}\).*got {warmup}\."):
        rates(1.0, warmup, total)


def test_the_cosine_may_end_above_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule = warmup_cosine(optimizer, 2, 10, final_share=0.001 / 0.4)
    lr_by_step = []
    for _ in range(11):
        lr_by_step.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert lr_by_step[:3] == pytest.approx([0.0, 0.2, 0.4])
    assert lr_by_step[6] == pytest.approx((0.4 + 0.001) / 2) and lr_by_step[10] == pytest.approx(0.001)
    with pytest.raises(WorkbenchError, match=r"`final_share`.*2\.0"):
        warmup_cosine(optimizer, 2, 10, final_share=2.0)
