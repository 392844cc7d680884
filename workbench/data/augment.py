"""Augmentation of whole batches (N, C, H, W) on the device, and the seeds of a step.

Every random draw of a training is a function of (seed, purpose, epoch, step, micro-batch). So neither the number of
workers nor a resumption changes it.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_for(seed: int, *what: str | int) -> int:
    """Return a 63-bit seed for one purpose, unrelated to the seed of any other purpose.

    Args:
        seed: The seed of the training.
        what: Names the purpose, as in ``seed_for(0, "augment", step)``.
    """
    return int.from_bytes(hashlib.blake2b(repr((seed, *what)).encode(), digest_size=8).digest(), "big") >> 1


def generator_for(seed: int, *what: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose, so that its draws are the same for every device.

    Args:
        seed: The seed of the training.
        what: Names the purpose, as in `seed_for`.
    """
    return torch.Generator().manual_seed(seed_for(seed, *what))


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 images into float32 with mean 0 and standard deviation 1 per channel.

    Args:
        images: (N, C, H, W), uint8.
        mean: (C,), of the training images, in units of 0 to 1.
        std: (C,), of the training images, in units of 0 to 1.

    Returns:
        (N, C, H, W), float32.
    """
    return (images.float() / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def flip_shift(images: Tensor, generator: torch.Generator, *, flip: bool, shift: int) -> Tensor:
    """Shift each image at random, then mirror it with probability 1/2. This takes one gather.

    Args:
        images: (N, C, H, W).
        generator: A CPU generator.
        flip: Whether to mirror.
        shift: The largest shift in pixels, in each direction. Black fills the border.

    Returns:
        Images of the same shape and type.
    """
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
    """Set a random square of each image to 0, the mean of normalised images.

    The centre is uniform, and the square is cut off at the border. Source: DeVries and Taylor 2017.

    Args:
        images: (N, C, H, W), normalised.
        generator: A CPU generator.
        size: Side of the square in pixels.

    Returns:
        Images of the same shape and type.
    """
    n, _, height, width = images.shape
    x, y = (torch.randint(0, side, (n, 1), generator=generator).to(images.device) for side in (width, height))
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    start = size // 2
    inside_rows = (rows >= y - start) & (rows < y - start + size)  # (N, H)
    inside_columns = (columns >= x - start) & (columns < x - start + size)
    return images.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[:, None], 0.0)
