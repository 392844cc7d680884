"""From a picture to what an ImageNet network takes: the authors' two ways to cut test images, and their train crops.

Source: the authors' data code. Resizing is bicubic and not clamped, so values overshoot 0 and 255, as theirs do. Pillow
averages where it shrinks, the authors' resize does not: shrunk images differ by that, and come out smoother.
Every function takes a PIL image; but for `train_pixels` it gives (3, size, size) float32, normalised by ImageNet's mean
and deviation.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from workbench.errors import WorkbenchError, unknown

MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD_RGB = np.array([0.229, 0.224, 0.225], np.float32) * 255
MARGIN = 32  # pixels that a test image is larger than what is cut out of it
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
COVERED = 0.1  # of the image, that a train crop must keep: the authors' setting, which makes 10 % the smallest area

Box = tuple[int, int, int, int]  # left, top, right, bottom


def squash(image: Image.Image, size: int) -> Tensor:
    """NFNets' test images: both sides resized to size + 32, whatever the aspect ratio, then the centre cut out."""
    start = (MARGIN + 1) // 2
    pixels = _resize(image, size + MARGIN)[start : start + size, start : start + size]
    return _normalized(pixels)


def crop(image: Image.Image, size: int) -> Tensor:
    """ResNets' and NF-RegNets' test images: a centre square of size / (size + 32) of the short side, then resized."""
    return _normalized(_resize(image.crop(center_box(*image.size, size)), size))


def whole(image: Image.Image, size: int) -> Tensor:
    """Test images of nets for small images: the whole picture, resized to a square."""
    return _normalized(_resize(image, size))


def train_pixels(image: Image.Image, size: int, generator: torch.Generator, flip: bool = True) -> np.ndarray:
    """Train images: a random box, resized to a square, mirrored with probability 1/2; not yet normalised, that is
    (size, size, 3) float32, from 0 to 255 but for the overshoot."""
    pixels = _resize(image.crop(random_box(*image.size, size, generator)), size)
    mirrored = torch.rand((), generator=generator) < 0.5
    return pixels[:, ::-1] if mirrored and flip else pixels


STYLES = {"squash": squash, "crop": crop, "whole": whole}


def eval_image(
    image: Image.Image, size: int, style: str, mean: Sequence[float] = (), std: Sequence[float] = ()
) -> Tensor:
    """A test image in one of the styles. Args: `mean` and `std`, a number a channel in units of 0..1, instead of
    ImageNet's. Raises: WorkbenchError for another style, naming the nearest."""
    if style not in STYLES:
        raise unknown("style of test images", style, STYLES)
    if size < 1:
        raise WorkbenchError(f"`size` (={size}) must be at least 1 pixel.")
    out = STYLES[style](image, size)
    if not mean:
        return out
    pixels = out * torch.from_numpy(STD_RGB)[:, None, None] + torch.from_numpy(MEAN_RGB)[:, None, None]
    return (pixels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def center_box(width: int, height: int, size: int) -> Box:
    """The centre square whose side is size / (size + 32) of the short side; an odd rest goes before it."""
    side = max(1, int(min(width, height) / (size + MARGIN) * size))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, size: int, generator: torch.Generator) -> Box:
    """A box of 8 to 100 % of the area (see COVERED) and aspect ratio 3/4 to 4/3; the centre square after ten misses.

    As the authors' framework draws it: the aspect ratio uniformly, then the height uniformly among those that fit.
    """
    for _ in range(ATTEMPTS):
        aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * torch.rand((), generator=generator).item()
        low, high = (round(math.sqrt(share * width * height / aspect)) for share in AREA)
        if round(high * aspect) > width:
            high = int((width + 0.5 - 1e-7) / aspect)
        high = min(high, height)
        box_height = low + _below(high - low + 1, generator) if low < high else high
        box_width = round(box_height * aspect)
        area = box_height * box_width / (width * height)
        if not (max(AREA[0], COVERED) <= area <= AREA[1] and 0 < box_width <= width and 0 < box_height <= height):
            continue
        if (box_width, box_height) == (width, height):  # the authors take the whole image for a miss
            break
        left = _below(width - box_width, generator) if box_width < width else 0
        top = _below(height - box_height, generator) if box_height < height else 0
        return left, top, left + box_width, top + box_height
    return center_box(width, height, size)


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _resize(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) float32, bicubic; one channel at a time as floats, so that nothing is clamped."""
    channels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in channels], axis=-1
    )


def _normalized(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(((pixels - MEAN_RGB) / STD_RGB).transpose(2, 0, 1)))
