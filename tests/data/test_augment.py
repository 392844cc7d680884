"""Tests of the augmentation. Evidence: a slow loop over images, hand arithmetic, repetition."""

import hashlib

import pytest
import torch

from workbench.data.augment import cutout, flip_shift, generator_for, normalize, seed_for


def test_flip_and_shift_equal_a_slow_loop():
    images = torch.randint(1, 256, (20, 3, 9, 7), dtype=torch.uint8)
    out = flip_shift(images, generator_for(0, "x"), flip=True, shift=2)
    generator = generator_for(0, "x")
    mirrored = torch.rand(20, generator=generator) < 0.5
    dy, dx = torch.randint(0, 5, (2, 20), generator=generator)
    for i, image in enumerate(images):
        canvas = torch.zeros(3, 13, 11, dtype=torch.uint8)
        canvas[:, 2:11, 2:9] = image
        moved = canvas[:, dy[i] : dy[i] + 9, dx[i] : dx[i] + 7]
        assert torch.equal(out[i], moved.flip(-1) if mirrored[i] else moved)
    assert 0 < mirrored.sum() < 20


def test_without_flip_and_shift_images_do_not_change():
    images = torch.randint(0, 256, (4, 1, 5, 5), dtype=torch.uint8)
    assert torch.equal(flip_shift(images, generator_for(0), flip=False, shift=0), images)


def test_normalize_equals_a_calculation_by_hand():
    out = normalize(torch.full((1, 2, 1, 1), 51, dtype=torch.uint8), torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.1]))
    assert out.flatten().tolist() == pytest.approx([0.2, 0.0], abs=1e-6)


def test_every_purpose_has_a_different_and_fixed_seed():
    seeds = {seed_for(s, what, step) for s in range(10) for what in ("order", "forward") for step in range(100)}
    assert len(seeds) == 2000
    assert seed_for(3, "order", 7) == int.from_bytes(hashlib.blake2b(b"(3, 'order', 7)", digest_size=8).digest()) // 2
    assert all(0 <= s < 2**63 for s in seeds)


def test_cutout_blanks_one_square_per_image():
    out = cutout(torch.ones(200, 3, 16, 12), generator_for(0, "x"), 4)
    blank = (out == 0).all(1)
    assert torch.equal(blank, (out == 0).any(1))  # in all channels
    sizes = blank.flatten(1).sum(1)
    assert sizes.max() == 16 and sizes.min() >= 4  # in a corner two by two pixels remain
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(rows * columns, sizes)
    again = cutout(torch.ones(200, 3, 16, 12), generator_for(0, "x"), 4)
    assert torch.equal(out, again)
