"""Augmentation on whole batches, on the device, and the randomness of a step.

Every random draw of a training is a function of (seed, what for, epoch, step, micro-batch), so neither the number of
workers nor a resumption changes it. Batches are (N, C, H, W).
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_for(seed: int, *what: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. seed_for(0, "augment", step): unrelated to that of any other purpose."""
    return int.from_bytes(hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *what: str | int) -> torch.Generator:
    """A CPU generator for one purpose; its draws are the same whatever device they are used on."""
    return torch.Generator().manual_seed(seed_for(seed, *what))


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 -> float32 with mean 0 and standard deviation 1 per channel, by the moments (C,) of the training images."""
    return (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def flip_shift(images: Tensor, generator: torch.Generator, *, flip: bool, shift: int) -> Tensor:
    """Moves each image by up to `shift` pixels each way (black comes in), then mirrors it with probability 1/2; one
    gather."""
    n, _, height, width = images.shape
    mirrored = torch.rand(n, generator=generator) < 0.5 if flip else torch.zeros(n, dtype=torch.bool)
    dy, dx = torch.randint(0, 2 * shift + 1, (2, n), generator=generator)
    mirrored, dy, dx = (t.to(images.device, non_blocking=True) for t in (mirrored, dy, dx))
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + dx[:, None]  # (N, W)
    rows = torch.arange(height, device=images.device) + dy[:, None]  # (N, H)
    padded = F.pad(images, (shift,) * 4)
    image = torch.arange(n, device=images.device)
    return padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """A square of `size` pixels around a uniform centre set to 0, the mean of normalised images; cut off at the border.

    Source: DeVries and Taylor 2017.
    """
    n, _, height, width = images.shape
    x, y = (torch.randint(0, side, (n, 1), generator=generator).to(images.device) for side in (width, height))
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    start = size // 2
    inside_rows = (rows >= y - start) & (rows < y - start + size)  # (N, H)
    inside_columns = (columns >= x - start) & (columns < x - start + size)
    return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)
