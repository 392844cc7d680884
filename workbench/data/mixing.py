"""MixUp and CutMix of whole batches on the device: half of a batch each.

Source: the authors' data code. A step draws twice its batch. The quarters A, B, C, D of the doubled batch give MixUp of
A with B and CutMix of C with D. Labels become distributions (N, classes), which the loss may smooth.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import WorkbenchError

MIXUP_ALPHA = 0.2


def mix_halves(
    images: Tensor, labels: Tensor, classes: int, rng: np.random.Generator, alpha: float = MIXUP_ALPHA
) -> tuple[Tensor, Tensor]:
    """Mix a doubled batch: MixUp for the first half of the result, CutMix for the second.

    Args:
        images: (2N, C, H, W), float and normalised.
        labels: (2N,), int64.
        classes: The number of classes.
        rng: The generator of all random draws.
        alpha: Parameter of MixUp's Beta distribution.

    Returns:
        Images (N, C, H, W) and label distributions (N, classes).

    Raises:
        WorkbenchError: If the number of images is odd or 0, or `alpha` is not positive.
    """
    n, rest = divmod(len(images), 2)
    if rest or n < 1:
        raise WorkbenchError(
            f"Mixing needs an even number of images above 0, got {len(images)}. Give two images for each mixed one."
        )
    half = (n + 1) // 2  # MixUp gets one image more if N is odd
    a, b, c, d = (slice(0, half), slice(half, 2 * half), slice(2 * half, half + n), slice(half + n, 2 * n))
    mixed, mixed_labels = mixup(images[a], labels[a], images[b], labels[b], classes, rng, alpha)
    cut, cut_labels = cutmix(images[c], labels[c], images[d], labels[d], classes, rng)
    return torch.cat([mixed, cut]), torch.cat([mixed_labels, cut_labels])


def mixup(
    first: Tensor, first_labels: Tensor, second: Tensor, second_labels: Tensor, classes: int, rng, alpha: float
) -> tuple[Tensor, Tensor]:
    """Compute r * first + (1 - r) * second with r ~ Beta(alpha, alpha) for each image.

    Args:
        first: (N, C, H, W).
        first_labels: (N,), int64.
        second: (N, C, H, W).
        second_labels: (N,), int64.
        classes: The number of classes.
        rng: A numpy generator.
        alpha: Parameter of the Beta distribution.

    Returns:
        Images (N, C, H, W), and label distributions (N, classes) with the same r.

    Raises:
        WorkbenchError: If `alpha` is not positive.
    """
    if not alpha > 0:
        raise WorkbenchError(f"`alpha` of MixUp must be above 0, got {alpha}. The authors use {MIXUP_ALPHA}.")
    ratio = torch.from_numpy(rng.beta(alpha, alpha, len(first))).to(first)
    images = torch.lerp(second, first, ratio.view(-1, 1, 1, 1))
    return images, mixed_labels(first_labels, second_labels, ratio, classes)


def cutmix(
    first: Tensor, first_labels: Tensor, second: Tensor, second_labels: Tensor, classes: int, rng
) -> tuple[Tensor, Tensor]:
    """Paste a random box of the first image onto the second.

    Args:
        first: (N, C, H, W).
        first_labels: (N,), int64.
        second: (N, C, H, W).
        second_labels: (N,), int64.
        classes: The number of classes.
        rng: A numpy generator.

    Returns:
        Images (N, C, H, W), and label distributions (N, classes) by the area of the box inside the image.
    """
    height, width = first.shape[-2:]
    boxes = cutmix_boxes(len(first), height, width, rng)
    rows, columns = torch.arange(height, device=first.device), torch.arange(width, device=first.device)
    top, bottom, left, right = torch.from_numpy(boxes).to(first.device).T[:, :, None]  # (N, 1) each
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    images = torch.where(inside[:, None], first, second)
    ratio = inside.float().mean((1, 2)).to(first)
    return images, mixed_labels(first_labels, second_labels, ratio, classes)


def cutmix_boxes(n: int, height: int, width: int, rng) -> np.ndarray:
    """Draw boxes around uniform centres, cut off at the border.

    Their sides are sqrt(1 - u) times those of the image, with u ~ U(0, 1).

    Args:
        n: The number of boxes.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        rng: A numpy generator.

    Returns:
        (n, 4): top, bottom, left, right.
    """
    x, y = rng.integers(0, width, n), rng.integers(0, height, n)
    side = np.sqrt(1 - rng.random(n))
    half_width, half_height = (side * width).astype(int) // 2, (side * height).astype(int) // 2
    return np.stack(
        [
            np.clip(y - half_height, 0, height),
            np.clip(y + half_height, 0, height),
            np.clip(x - half_width, 0, width),
            np.clip(x + half_width, 0, width),
        ],
        axis=1,
    )


def mixed_labels(first: Tensor, second: Tensor, ratio: Tensor, classes: int) -> Tensor:
    """Combine two labels into a distribution.

    Args:
        first: (N,), int64.
        second: (N,), int64.
        ratio: (N,), the share of the first label, from 0 to 1.
        classes: The number of classes.

    Returns:
        (N, classes), of the precision of `ratio`.
    """
    first_hot, second_hot = F.one_hot(first, classes).to(ratio), F.one_hot(second, classes).to(ratio)
    return torch.lerp(second_hot, first_hot, ratio[:, None])
