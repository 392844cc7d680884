"""Inputs of ImageNet networks: the authors' two kinds of test images, and their train crops.

Source: the authors' data code. Resizing is bicubic and not clamped, so values overshoot 0 and 255, as in their code.
Pillow averages when it shrinks an image, and the authors' resize does not. So shrunk images are smoother than theirs.

Every function takes a PIL image and returns (size, size, 3) float32, not normalised. `pixels.Preprocess` makes whole
test images of them.
"""

import math

import numpy as np
import torch
from PIL import Image

MEAN_RGB = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD_RGB = np.array([0.229, 0.224, 0.225], np.float32) * 255
MARGIN = 32  # pixels by which a test image is larger than the crop
AREA, ASPECT, ATTEMPTS = (0.08, 1.0), (3 / 4, 4 / 3), 10
COVERED = 0.1  # share of the image that a train crop must keep. The authors' setting makes 10 % the smallest area

Box = tuple[int, int, int, int]  # left, top, right, bottom


def squash(image: Image.Image, size: int) -> np.ndarray:
    """Make NFNets' test images: resize both sides to size + 32, then cut out the centre."""
    start = (MARGIN + 1) // 2
    return _resize(image, size + MARGIN)[start : start + size, start : start + size]


def crop(image: Image.Image, size: int) -> np.ndarray:
    """Make ResNets' and NF-RegNets' test images: cut out the centre square, then resize it.

    The side of the square is size / (size + 32) of the short side.
    """
    return _resize(image.crop(center_box(*image.size, size)), size)


def whole(image: Image.Image, size: int) -> np.ndarray:
    """Make test images of networks for small images: resize the whole image to a square."""
    return _resize(image, size)


def train_pixels(image: Image.Image, size: int, generator: torch.Generator, flip: bool = True) -> np.ndarray:
    """Make a train image: a random box, resized to a square, mirrored with probability 1/2.

    Args:
        image: A PIL image.
        size: Side of the square in pixels.
        generator: The generator of all random draws.
        flip: Whether to mirror.

    Returns:
        (size, size, 3) float32, not normalised. Values are from 0 to 255, apart from the overshoot.
    """
    pixels = _resize(image.crop(random_box(*image.size, size, generator)), size)
    mirrored = torch.rand((), generator=generator) < 0.5
    return pixels[:, ::-1] if mirrored and flip else pixels


STYLES = {"squash": squash, "crop": crop, "whole": whole}


def center_box(width: int, height: int, size: int) -> Box:
    """Return the centre square whose side is size / (size + 32) of the short side.

    If the margin is odd, the left or top part gets one pixel more.
    """
    side = max(1, int(min(width, height) / (size + MARGIN) * size))
    left, top = (width - side + 1) // 2, (height - side + 1) // 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, size: int, generator: torch.Generator) -> Box:
    """Draw a box of 8 to 100 % of the area (see COVERED) and aspect ratio 3/4 to 4/3.

    The authors' framework draws the aspect ratio uniformly, then the height uniformly among those that fit. After ten
    failed attempts it returns the centre square.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Determines the centre square, see `center_box`.
        generator: The generator of all random draws.

    Returns:
        (left, top, right, bottom).
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
        if (box_width, box_height) == (width, height):  # the authors count the whole image as a failure
            break
        left = _below(width - box_width, generator) if box_width < width else 0
        top = _below(height - box_height, generator) if box_height < height else 0
        return left, top, left + box_width, top + box_height
    return center_box(width, height, size)


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


def _resize(image: Image.Image, size: int) -> np.ndarray:
    """Resize to (size, size, 3) float32, bicubic. Float channels keep values from clamping."""
    channels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    return np.stack(
        [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in channels], axis=-1
    )
