"""MixUp and CutMix on whole batches, on the device, as the authors mix them: half of a batch each.

Source: the authors' data code. A step draws twice its batch: quarters A, B, C, D of the doubled batch give MixUp of A
with B and CutMix of C with D. Labels become distributions (N, classes); smoothing them comes after, in the loss.
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
    """(2N, C, H, W) images, float and normalised, and (2N,) labels -> (N, C, H, W) and (N, classes) distributions."""
    n, rest = divmod(len(images), 2)
    if rest or n < 1:
        raise WorkbenchError(
            f"mixing needs an even number of images, two for each that comes out, but got {len(images)}."
        )
    half = (n + 1) // 2  # of an odd batch, MixUp gets the one more
    a, b, c, d = (slice(0, half), slice(half, 2 * half), slice(2 * half, half + n), slice(half + n, 2 * n))
    mixed, mixed_labels = mixup(images[a], labels[a], images[b], labels[b], classes, rng, alpha)
    cut, cut_labels = cutmix(images[c], labels[c], images[d], labels[d], classes, rng)
    return torch.cat([mixed, cut]), torch.cat([mixed_labels, cut_labels])


def mixup(
    first: Tensor, first_labels: Tensor, second: Tensor, second_labels: Tensor, classes: int, rng, alpha: float
) -> tuple[Tensor, Tensor]:
    """r * first + (1 - r) * second, r ~ Beta(alpha, alpha) for each image; labels by the same r."""
    if not alpha > 0:
        raise WorkbenchError(f"`alpha` (={alpha}) of MixUp must be above 0.")
    ratio = torch.from_numpy(rng.beta(alpha, alpha, len(first))).to(first)
    images = torch.lerp(second, first, ratio.view(-1, 1, 1, 1))
    return images, mixed_labels(first_labels, second_labels, ratio, classes)


def cutmix(
    first: Tensor, first_labels: Tensor, second: Tensor, second_labels: Tensor, classes: int, rng
) -> tuple[Tensor, Tensor]:
    """A box of the first image on the second; labels by the area that the box really covers, cut off at the border."""
    height, width = first.shape[-2:]
    boxes = cutmix_boxes(len(first), height, width, rng)
    rows, columns = torch.arange(height, device=first.device), torch.arange(width, device=first.device)
    top, bottom, left, right = torch.from_numpy(boxes).to(first.device).T[:, :, None]  # (N, 1) each
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    images = torch.where(inside[:, None], first, second)
    ratio = inside.float().mean((1, 2)).to(first)
    return images, mixed_labels(first_labels, second_labels, ratio, classes)


def cutmix_boxes(n: int, height: int, width: int, rng) -> np.ndarray:
    """(n, 4) top, bottom, left, right: sides sqrt(1 - u) of the image's, u ~ U(0, 1), around a uniform centre."""
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
    """Two labels (N,) each and the share (N,) of the first -> distributions (N, classes)."""
    one, other = F.one_hot(first, classes).to(ratio), F.one_hot(second, classes).to(ratio)
    return torch.lerp(other, one, ratio[:, None])
