"""Tests of MixUp and CutMix. Evidence: label arithmetic by hand, the source of each pixel, the distributions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.data.mixing import cutmix, cutmix_boxes, mix_halves, mixup
from workbench.errors import WorkbenchError


class Fixed:
    """A generator that returns the given draws."""

    def __init__(self, **draws):
        self.draws = {name: list(values) for name, values in draws.items()}

    def beta(self, *_):
        return np.array(self.draws["beta"])

    def integers(self, *_):
        return np.array(self.draws["integers"].pop(0))

    def random(self, *_):
        return np.array(self.draws["random"])


def constant(*values, size=8):
    return torch.stack([torch.full((3, size, size), float(v)) for v in values])


def test_mixup_equals_a_calculation_by_hand():
    first, second, rng = constant(10, 10), constant(20, 30), Fixed(beta=[0.25, 0.9])
    images, labels = mixup(first, torch.tensor([0, 2]), second, torch.tensor([1, 2]), 3, rng, 0.2)
    assert images[0].unique().tolist() == [17.5] and images[1].unique().tolist() == pytest.approx([12.0])
    torch.testing.assert_close(labels, torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))


def test_cutmix_equals_a_calculation_by_hand_inside_and_at_a_corner():
    # sides are sqrt(1 - 0.75) = 1/2 of 8 px, so half a side is 2 px
    # around (x 4, y 3): columns 2..5, rows 1..4. The box around (0, 7) is cut off at the corner
    rng = Fixed(integers=[[4, 0], [3, 7]], random=[0.75, 0.75])
    images, labels = cutmix(constant(1, 1), torch.tensor([0, 0]), constant(2, 2), torch.tensor([1, 1]), 2, rng)
    expected = torch.full((2, 8, 8), 2.0)
    expected[0, 1:5, 2:6] = 1  # the box keeps the first image
    expected[1, 5:8, 0:2] = 1
    assert torch.equal(images[:, 0], expected) and torch.equal(images[:, 2], expected)
    torch.testing.assert_close(labels, torch.tensor([[16 / 64, 48 / 64], [6 / 64, 58 / 64]]))


def test_each_half_mixes_two_quarters_of_the_doubled_batch():
    images = constant(*range(8))
    rng = Fixed(beta=[1.0, 0.0], integers=[[4, 4], [4, 4]], random=[0.0, 1.0])  # whole boxes and empty ones
    mixed, labels = mix_halves(images, torch.arange(8), 8, rng)
    assert [m.unique().tolist() for m in mixed] == [[0.0], [3.0], [4.0], [7.0]]
    assert labels.argmax(1).tolist() == [0, 3, 4, 7]
    odd, _ = mix_halves(constant(*range(6)), torch.arange(6), 6, np.random.default_rng(0))
    assert len(odd) == 3


def test_mixed_labels_are_distributions_that_the_loss_can_smooth():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 3, 16, 16, generator=generator), torch.randint(0, 10, (64,), generator=generator)
    _, labels = mix_halves(x, y, 10, np.random.default_rng(0))
    torch.testing.assert_close(labels.sum(1), torch.ones(32))
    logits = torch.randn(32, 10, generator=generator)
    smooth = 0.9 * labels + 0.1 / 10
    by_hand = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=0.1), by_hand)


def test_the_box_covers_half_of_the_image_on_average_and_never_leaves_it():
    boxes = cutmix_boxes(4000, 32, 24, np.random.default_rng(0))
    top, bottom, left, right = boxes.T
    assert (top >= 0).all() and (bottom <= 32).all() and (left >= 0).all() and (right <= 24).all()
    area = (bottom - top) * (right - left) / (32 * 24)
    # E[area] before the cut is E[1 - u] = 1/2. A side s keeps s - s^2/4 on average, so E[(s - s^2/4)^2] = 0.3208
    assert area.mean() == pytest.approx(0.5 - 0.2 + 1 / 48, abs=0.03)


def test_mixup_ratios_follow_the_beta_distribution():
    rng = np.random.default_rng(0)
    n = 4000
    ones, zeros = torch.ones(n, 1, 1, 1, dtype=torch.float64), torch.zeros(n, 1, 1, 1, dtype=torch.float64)
    y = torch.zeros(n, dtype=torch.int64)
    ratio = mixup(ones, y, zeros, y, 2, rng, 0.2)[0].flatten()
    assert ratio.mean().item() == pytest.approx(0.5, abs=0.03)
    assert ratio.var().item() == pytest.approx(0.25 / 1.4, rel=0.05)  # 1 / (4 (2 alpha + 1))


def test_equal_seeds_mix_alike():
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8)
    a, b = (mix_halves(x, y, 8, np.random.default_rng(7)) for _ in range(2))
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_odd_batches_and_alpha_0_are_refused():
    with pytest.raises(WorkbenchError, match=r"even.*\b3\b"):
        mix_halves(torch.zeros(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64), 2, np.random.default_rng(0))
    with pytest.raises(WorkbenchError, match=r"`alpha`.*0\.0"):
        mix_halves(torch.zeros(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64), 2, np.random.default_rng(0), alpha=0.0)
